// Package task is the vocabulary of Batchyard: the task, its states, its
// result, the events that the audit log is made of, what travels between the
// stages (assignments and batches), and the wire form of each.
//
// The package knows nobody: it imports nothing of ours, does no I/O and holds
// no state, so every other package can speak in its words.
//
// # States
//
//	         ┌──────────── requeued (retry, reroute, degrade) ───────────┐
//	         ▼                                                           │
//	──▶ PENDING ──assigned──▶ ASSIGNED ──attempt started──▶ RUNNING ─────┤
//	         │                    │                            │         │
//	         │                    └────────── requeued ────────┼────▶ (PENDING)
//	         ▼                    ▼                            ▼
//	  CANCELLED, EXPIRED    CANCELLED, EXPIRED, FAILED   SUCCESS, FAILED, CANCELLED, EXPIRED
//
// A terminal state is final. Events of different stages may be recorded out of
// order, so a state carries a sequence number (see [Sequence]) that grows along
// the way of a task; whoever keeps the state keeps the one with the highest.
//
// # Wire forms
//
// At the edges (tasks.*, results, dlq) one record is one task or one result,
// JSON or MessagePack with named fields: see [DecodeTask], [EncodeTask],
// [DecodeResult], [EncodeResult]. Inside (assignments, batches, events) one
// record is a frame of many entries in positional MessagePack: see
// [EncodeFrame] and [DecodeFrame].
//
// All decoders take bytes from strangers: lengths are checked against the bytes
// that remain before anything is allocated, and nesting and counts are bounded.
package task
