// Package producer takes tasks in: it validates them, writes them to the log,
// and answers once all in-sync replicas have them.
//
// # What happens to a submit
//
//	validate all ──▶ write the tasks ──▶ write task.accepted ──▶ remember ──▶ nil
//	     │                 │                     │
//	     ▼                 ▼                     ▼
//	*RefusedError      outcome unknown       tasks are in; the events follow
//
// All or nothing is refused: when one task of a submit is wrong, none is written.
// The tasks are written before the events that say they were accepted, so that no
// event tells of a task that is not there. Once begun, a submit is carried through
// even when the one who asked is gone: that the context ended means only that the
// answer is not known.
//
// When the process dies between the two writes, the submit was not answered; its
// tasks run all the same, and their way in the audit log begins with task.queued.
// Submitting again with the same ids is the same tasks.
//
// # Moments after
//
// The status of a task comes from Postgres, which hears of it a little later.
// Until then [Producer.Recent] knows it: from a ring in this process and, when
// there is a Redis, from a mark there that the other processes see too.
package producer
