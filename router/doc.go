// Package router is the stage that assigns each task to a device, as late as possible.
//
//	tasks.high ──┐
//	tasks.normal─┼─▶ intake ──▶ scheduler ──▶ emitter ──▶ assignments, events
//	tasks.low ───┤   decode     decide.Decider    │
//	tasks.parked─┘   sort, claim    ▲             ├──▶ tasks.parked
//	     │  ▲          │            │             ├──▶ results (EXPIRED)
//	     │  └──────────┼────────────┼─────────────┘ recalled
//	     ▼             ▼         watch, steer
//	   dlq        duplicates     (Redis: devices, credits, overrides, policy)
//
// The decisions are made in package decide, by a policy of package policy; this package is what
// surrounds them. Intake reads records, moves what cannot be decoded to the dead-letter topic, drops
// what another record with the same identity has claimed, and hands the rest to the scheduler. The
// scheduler is one goroutine that owns the decider; everything that happens reaches it by a channel, so
// no decision takes a lock. The emitter carries out the decisions: it takes credits in Redis, and
// writes to the log.
//
// # The states of a task here
//
// A task is set aside before it is claimed, or when others need its room more; then it is read again, and
// continues as if that were the first time.
//
//	read ──▶ claimed ──▶ pending (package decide) ──▶ assigned
//	  │         │  ▲         │
//	  │         │  │         ├──▶ parked      written back to the log
//	  │         │  └──┐      └──▶ expired, cancelled
//	  ▼         ▼     ▼
//	dead     duplicate, contested ──▶ dead letter
//	letter   reread
//
// # Races
//
//   - Two records of one task are read by two routers. The first one to claim it in Redis continues,
//     the other is a duplicate (claims.go). If Redis lost the claim, both run, and the recorder keeps
//     the first result.
//   - Records of two requests under one id are read. The second is contested until Postgres says whose id
//     it is (contested.go).
//   - A partition moves to another router. Its records that are here are lost: they leave the window,
//     unless they were assigned already, and the new owner reads them again.
//   - An operator cancels or reprioritizes a task before, while or after this router reads it. The
//     override is stored in Redis first, then published. Intake looks overrides up; messages reach the
//     tasks in the window; and after each reconnect all pending tasks are looked up.
//
// # When the process dies
//
// A record is done only when everything it became is on all in-sync replicas: the assignment, parked
// copy, result or dead letter, and the events. Until then another router reads it again. Its claim in
// Redis holds the record's own position, so reading it again is no duplicate. A task that was assigned
// twice runs twice, and the recorder keeps the first result. Credits taken by a dead router are leases,
// which expire.
package router
