// Package fault kills the process at named points, so that tests see what
// happens when it dies exactly there.
//
// In a normal build [At] is an empty function that the compiler leaves out. A
// binary built with
//
//	go build -tags faults ./cmd/batchyard
//
// looks at BATCHYARD_FAULT: "audit.before_commit" kills the process with SIGKILL
// when it passes that point, "audit.before_commit:7" when it does so for the
// seventh time. Nothing is flushed, closed or said to anybody, as when the power
// goes. [Points] is the list of the points and what a death there means.
package fault

// Env is the variable that names the point, in a build with the tag faults.
const Env = "BATCHYARD_FAULT"

// Point is a place in the code between two effects.
type Point struct {
	Name  string
	Where string // what was done, and what was not, when the process dies here
}

// Points are all points, by stage, in the order in which work passes them. The
// test of this package fails when the code has one that is not here, or lacks one
// that is.
//
// Those of stream and producer are passed in every process that reads or writes:
// who is to die is the process that gets the variable.
var Points = []Point{
	{"producer.before_write", "a submit was checked; nothing of it is written"},
	{"producer.between", "its tasks are acknowledged by all replicas, the events that tell of them are not written"},
	{"producer.after_events", "tasks and events are acknowledged; the API does not know yet"},
	{"api.before_answer", "everything is done but for the answer to the client"},

	{"router.after_read", "tasks were read; no claim is taken"},
	{"router.after_claim", "their claims are in Redis; no event is written, nothing is decided"},
	{"router.after_arrival", "the events of their arrival are acknowledged; their records are not done"},
	{"router.after_credits", "credits were taken in Redis; the assignments that they are for are not written"},
	{"router.before_assignment", "assignments are encoded and not written"},
	{"router.after_assignment", "assignments are acknowledged; the records of their tasks are not done"},
	{"router.after_end", "a result (expired), a duplicate's event or a parked task is acknowledged; its record is not done"},

	{"batcher.after_read", "assignments were read, their leases are held; they are in no batch"},
	{"batcher.before_batch", "a batch is closed and not written"},
	{"batcher.after_batch", "a batch is acknowledged; the records of its assignments are not done"},

	{"workers.after_read", "a batch was read, its leases are held; no request is made"},
	{"workers.before_request", "the event that an attempt starts is handed over; the request is not made"},
	{"workers.after_answer", "the device answered; nothing is written of it"},
	{"workers.before_result", "a result, or a task to be tried again, is encoded and not written"},
	{"workers.after_result", "result and events are acknowledged; the record of the batch is not done"},

	{"audit.after_acquire", "a partition's epoch is ours in Postgres; nothing of it is read"},
	{"audit.before_begin", "a chunk is put together; its transaction is not begun"},
	{"audit.after_results", "in the transaction: offsets are advanced and results taken"},
	{"audit.after_copy", "in the transaction: audit rows are copied, too"},
	{"audit.before_commit", "in the transaction: states, callbacks and notifications are written, too"},
	{"audit.after_commit", "Postgres has committed; the records are not done, Kafka knows nothing of it"},

	{"callbacks.after_claim", "a callback is claimed in Postgres; it is not delivered"},
	{"callbacks.after_delivery", "the user's endpoint has answered; neither event nor row say so"},
	{"callbacks.after_event", "the event of the delivery is acknowledged; the row is still due"},
	{"callbacks.after_row", "the row says how the delivery went"},

	{"stream.before_events", "messages of a unit may be written; the frame with its events is not"},
	{"stream.after_ack", "the broker has acknowledged a write; nobody here knows"},
	{"stream.before_commit", "records are done; the offset that says so is not committed to Kafka"},
	{"stream.after_commit", "the offset is committed to Kafka; nobody here knows"},
}
