// Package fault kills the process at named points, so that tests can check what
// happens when it dies exactly there.
//
// In a normal build [At] is an empty function, which the compiler removes. A
// binary built with
//
//	go build -tags faults ./cmd/batchyard
//
// reads BATCHYARD_FAULT. "audit.before_commit" kills the process with SIGKILL when
// it reaches that point; "audit.before_commit:7" kills it when it reaches the point
// for the seventh time. As in a power failure, nothing is flushed, closed or
// announced. [Points] lists the points and what has happened when the process dies
// there.
package fault

// Env is the environment variable that names the point, in a build with the tag
// faults.
const Env = "BATCHYARD_FAULT"

// Point is a place in the code between two side effects.
type Point struct {
	Name  string
	State string // what has happened, and what has not, when the process dies here
}

// Points lists all points by stage, in the order in which work reaches them. A test
// fails if this list and the calls of At in the code differ.
//
// Every process that reads or writes reaches the points of stream and producer, so
// the one to set the variable for is the one that should die.
var Points = []Point{
	{"producer.before_write", "a submission was validated; none of it is written"},
	{"producer.between", "all replicas acknowledged its tasks; the events about them are not written"},
	{"producer.after_events", "tasks and events are acknowledged; the API doesn't know yet"},
	{"api.before_answer", "everything is done except the answer to the client"},

	{"feed.before_submit", "the row of a batch says up to which line tasks are about to be submitted; none of them is"},
	{"feed.after_submit", "the tasks are acknowledged; the row does not say so"},
	{"feed.before_end", "the output of a batch is in the blob store; the transaction that shows it is not committed"},

	{"router.after_read", "tasks were read; no claim is taken"},
	{"router.after_claim", "their claims are in Redis; no event is written, nothing is decided"},
	{"router.after_arrival", "the events of their arrival are acknowledged; their records are not done"},
	{"router.after_credits", "credits were taken in Redis; the assignments they are for are not written"},
	{"router.before_assignment", "assignments are encoded but not written"},
	{"router.after_assignment", "assignments are acknowledged; the records of their tasks are not done"},
	{"router.after_end", "an expired task's result, a duplicate's event or a parked task is acknowledged; its record is not done"},

	{"batcher.after_read", "assignments were read and their leases are held; they are in no batch yet"},
	{"batcher.before_batch", "a batch is complete but not written"},
	{"batcher.after_batch", "a batch is acknowledged; the records of its assignments are not done"},

	{"workers.after_read", "a batch was read and its leases are held; no request is sent"},
	{"workers.before_request", "the event that starts an attempt is queued; the request is not sent"},
	{"workers.after_answer", "the device has answered; nothing about it is written"},
	{"workers.before_result", "a result, or a task to retry, is encoded but not written"},
	{"workers.after_result", "result and events are acknowledged; the record of the batch is not done"},

	{"audit.after_acquire", "the partition's epoch in Postgres is ours; its records have not been read"},
	{"audit.before_begin", "a chunk is complete; its transaction has not begun"},
	{"audit.after_results", "inside the transaction: offsets are advanced and results recorded"},
	{"audit.after_copy", "inside the transaction: audit rows are copied as well"},
	{"audit.before_commit", "inside the transaction: states, callbacks and notifications are written as well"},
	{"audit.after_commit", "Postgres has committed; the records are not done, and Kafka doesn't know"},

	{"callbacks.after_claim", "a callback is claimed in Postgres but not delivered"},
	{"callbacks.after_delivery", "the user's endpoint has answered; neither an event nor the row says so"},
	{"callbacks.after_event", "the delivery's event is acknowledged; the row is still due"},
	{"callbacks.after_row", "the row records the outcome of the delivery"},

	{"stream.before_events", "messages of a unit may be written; the frame with its events is not"},
	{"stream.after_ack", "the broker has acknowledged a write; this process doesn't know yet"},
	{"stream.before_commit", "records are done; their offset is not committed to Kafka"},
	{"stream.after_commit", "the offset is committed to Kafka; this process doesn't know yet"},
}
