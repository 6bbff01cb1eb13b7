// Package app runs the chosen stages in one process. It loads the configuration,
// connects to Kafka, Redis and Postgres, starts the stages, reports when all are ready,
// and stops them in order.
//
//	starting ──all stages ready──▶ ready ──signal──▶ draining ──▶ stopped
//	    │                            │                  ▲
//	    └────────── an error of any stage ──────────────┘ (exit code ≠ 0)
//
// Stages stop in the order of a task's path, so that later stages can still process what
// a draining stage writes. If the process dies instead, another one continues from the
// committed offsets.
package app
