// Package router decides where each task runs, as late as it can.
//
//	tasks.high ─┐
//	tasks.normal┼─▶ intake ──▶ window ──▶ round ──▶ assignments
//	tasks.low  ─┤   decode     ready      policy    + events
//	tasks.parked┘   claim      waiting    credits
//	                  │           │
//	                  ▼           ▼
//	                 dlq     tasks.parked, results (EXPIRED)
//
// Intake reads records, refuses what is broken to the dead letters, drops what
// another record with the same identity has claimed, and hands the rest to the
// window. The window keeps who goes first (bands, tenants, levels: flow.go) and
// what each task needs of a device (model, tags, devices to avoid: one class for
// all that need the same), so that a class that nothing can serve costs nothing
// and holds up nobody. A round takes the first tasks of the classes that have a
// device with a free credit, lets the policy pick a device for each, takes all
// credits in one round trip, and writes assignments.
//
// The decider is all of that without the log, Redis and the clock. One goroutine,
// the scheduler, owns it and does what it decides: there is no lock in the path
// of a decision. [Core] is the same decider for simulations.
//
// # What a task goes through here
//
//	read ──▶ claimed ──▶ ready ⇄ waiting (not-before, no device) ──▶ assigned
//	  │         │                        │
//	  ▼         ▼                        ├──▶ parked   (set aside in the log)
//	dead      duplicate                  └──▶ expired, cancelled
//
// # When the process dies
//
// A record is done only when what it became is on all in-sync replicas:
// assignment, parked copy, result or dead letter, and the events. Until then
// another router reads it again. Its claim in Redis holds the record's own
// position, so that reading it again is no duplicate. An assignment that was
// written twice runs twice and is answered once: the recorder takes the first
// result. Credits of a dead router are leases, which end.
package router
