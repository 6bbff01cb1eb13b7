// Package task is the vocabulary of Batchyard: the task, its states and its result, the
// events that the audit log consists of, and what travels between the stages (assignments
// and batches). Package task/wire encodes and decodes them.
//
// It does no I/O, holds no state and imports no stage, so every package can use it.
//
// # States
//
//	         ┌──────────────────── requeued (retry, degrade) ────────────┐
//	         ▼                                                           │
//	──▶ PENDING ──assigned──▶ ASSIGNED ──attempt started──▶ RUNNING ─────┤
//	         │                    │                            │         │
//	         │                    └────────── requeued ────────┼────▶ (PENDING)
//	         ▼                    ▼                            ▼
//	  CANCELLED, EXPIRED    CANCELLED, EXPIRED, FAILED   SUCCESS, FAILED, CANCELLED, EXPIRED
//
// A terminal state is final. Events of different stages may be recorded out of order, so
// each state has a sequence number (see [Sequence]) that grows along the life of a task:
// the state with the highest number is the current one.
package task
