// Package app puts the stages together: it loads the configuration, connects to
// Kafka, Redis and Postgres, starts the stages that were asked for, tells when
// they are ready, and stops them in order.
//
//	starting ──all stages ready──▶ ready ──signal──▶ draining ──▶ stopped
//	    │                            │                  ▲
//	    └────────── an error of any stage ──────────────┘ (exit code ≠ 0)
//
// Stages stop in the order of a task's way: what a stage still writes while it
// drains is taken up by the stages behind it, in this process or another.
package app
