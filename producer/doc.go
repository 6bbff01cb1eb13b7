// Package producer accepts tasks: it validates them, writes them to Kafka, and answers once all
// in-sync replicas have them.
//
// # Path of a submit
//
//	validate all ──▶ compare ids ──▶ write the tasks ──▶ write task.accepted ──▶ remember ──▶ states
//	     │               │                 │                     │
//	     ▼               ▼                 ▼                     ▼
//	*RefusedError   *ReusedError     outcome unknown       tasks are in; the events follow
//
// A submit is accepted or refused as a whole: if one task is invalid, none is written. The tasks are
// written before the events that say they were accepted, so no event is about a task that does not
// exist. Once started, a submit is carried out even if the caller goes away; the end of the
// caller's context only means that the outcome is unknown to it.
//
// If the process dies between the two writes, the submit was not answered. Its tasks run anyway, and
// in the audit log they begin with task.queued. Submitting again with the same ids is safe: they are
// the same tasks. Their task.accepted is then written, or task.resubmitted if they have finished.
//
// # Until Postgres knows
//
// The status of a task comes from Postgres, which learns of it a little later. Until then
// [Producer.Recent] knows the task: from a ring buffer in this process, and, if there is a Redis, from
// a key there that the other processes see too.
//
// # Races
//
// All methods may be called from any goroutine. Close waits for what was started before it; a submit
// that comes later gets [ErrClosed]. A cancel and a result race in Kafka: the recorder keeps the
// first.
package producer
