// Package task is the vocabulary of Batchyard: the task, its states and its result, the
// events that the audit log consists of, and what travels between the stages (assignments
// and batches).
//
// It does no I/O, holds no state and imports no other stage, so every package can use it.
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
//
// # Wire forms
//
// In the topics that users write and read (tasks.*, results, dlq) a record is one task or
// one result, as JSON or as MessagePack with named fields: see [DecodeTask], [EncodeTask],
// [DecodeResult], [EncodeResult]. In the internal topics (assignments, batches, events) a
// record is a frame of many entries in positional MessagePack: see [EncodeFrame] and
// [DecodeFrame].
//
// All decoders accept untrusted bytes: they check lengths against the remaining bytes
// before they allocate, and limit nesting and counts.
package task
