package task

// Action names what was done. [Actions] is the complete, documented list: the recorder
// refuses any other action.
type Action string

// The actions.
const (
	TaskAccepted      Action = "task.accepted"
	TaskRefused       Action = "task.refused"
	TaskQueued        Action = "task.queued"
	TaskDuplicate     Action = "task.duplicate"
	TaskParked        Action = "task.parked"
	TaskAssigned      Action = "task.assigned"
	TaskRequeued      Action = "task.requeued"
	TaskDegraded      Action = "task.degraded"
	TaskSucceeded     Action = "task.succeeded"
	TaskFailed        Action = "task.failed"
	TaskCancelled     Action = "task.cancelled"
	TaskExpired       Action = "task.expired"
	TaskCancelAsked   Action = "task.cancel_requested"
	TaskReprioritized Action = "task.reprioritized"
	BatchClosed       Action = "batch.closed"
	AttemptStarted    Action = "attempt.started"
	AttemptSucceeded  Action = "attempt.succeeded"
	AttemptFailed     Action = "attempt.failed"
	ResultDuplicate   Action = "result.duplicate"
	RecordDead        Action = "record.dead_lettered"
	RecordReplayed    Action = "record.replayed"
	DeviceJoined      Action = "device.joined"
	DeviceLeft        Action = "device.left"
	DeviceSilent      Action = "device.silent"
	DeviceDrained     Action = "device.drained"
	DeviceUndrained   Action = "device.undrained"
	PolicyChanged     Action = "router.policy_changed"
	ConfigReloaded    Action = "config.reloaded"
	BreakerOpened     Action = "breaker.opened"
	BreakerHalfOpen   Action = "breaker.half_opened"
	BreakerClosed     Action = "breaker.closed"
	CallbackSent      Action = "callback.delivered"
	CallbackFailed    Action = "callback.failed"
	CallbackGivenUp   Action = "callback.given_up"
	PartitionDropped  Action = "audit.partition_dropped"
)

// ActionInfo documents one action.
type ActionInfo struct {
	Action  Action
	Stage   string // which stage emits it
	State   State  // state of the task afterwards; empty: unchanged
	Meaning string
}

// Actions lists every action that is ever recorded, in the order of a task's life.
var Actions = []ActionInfo{
	{TaskAccepted, "producer, router", Pending, "a task was accepted by the API, or read from its topic if another client wrote it"},
	{TaskRefused, "producer", "", "a submitted task was refused; the detail names the field"},
	{TaskQueued, "router", Pending, "a router read the task and holds it until a device has a free credit"},
	{TaskDuplicate, "router", "", "another record with the same tenant and id was dropped"},
	{TaskParked, "router", Pending, "no device can run the task now; it was parked in the log and will be tried again later"},
	{TaskAssigned, "router", Assigned, "a router chose a device; the detail says why"},
	{BatchClosed, "batcher", "", "the assignment was sent to its device in a batch; the detail says why the batch closed and how large it was"},
	{AttemptStarted, "workers", Running, "the request was sent to the device"},
	{AttemptSucceeded, "workers", "", "the device answered"},
	{AttemptFailed, "workers", "", "the attempt failed; error class and status say how"},
	{TaskRequeued, "workers, router", Pending, "the task waits again: to be retried here or elsewhere, or because its worker stopped"},
	{TaskDegraded, "workers", "", "the task continues with a smaller model"},
	{TaskSucceeded, "workers", "", "the result was written"},
	{TaskFailed, "workers, router", "", "the task ended without an answer; the detail has the reason of every attempt"},
	{TaskCancelled, "router, workers", "", "the task was stopped because it was cancelled"},
	{TaskExpired, "router, workers", "", "the deadline passed before the task finished"},
	{TaskCancelAsked, "api", "", "a user asked to cancel the task"},
	{TaskReprioritized, "api", "", "a user changed the priority of a waiting task; the detail has the old and the new"},
	{ResultDuplicate, "audit", "", "a second terminal result arrived and was dropped"},
	{RecordDead, "every stage", "", "a record that cannot be processed was written to the dead-letter topic; the detail says why and where it came from"},
	{RecordReplayed, "cli", "", "a dead letter was replayed to its topic"},
	{DeviceJoined, "api, router", "", "a device sent its first heartbeat"},
	{DeviceLeft, "api", "", "a device left"},
	{DeviceSilent, "router", "", "a device missed three heartbeats"},
	{DeviceDrained, "api", "", "an operator drained a device: it gets no new work"},
	{DeviceUndrained, "api", "", "an operator undrained a device"},
	{PolicyChanged, "api", "", "an operator changed the routers' policy; the detail has the old and the new"},
	{ConfigReloaded, "every stage", "", "a process reloaded its configuration file, which changed the routers' policy; the detail has the old and the new"},
	{BreakerOpened, "workers", "", "a device failed too often and gets no requests for a while"},
	{BreakerHalfOpen, "workers", "", "single requests test whether the device has recovered"},
	{BreakerClosed, "workers", "", "the device has recovered"},
	{CallbackSent, "callbacks", "", "the user's endpoint accepted the callback"},
	{CallbackFailed, "callbacks", "", "a delivery failed and will be retried"},
	{CallbackGivenUp, "callbacks", "", "the last attempt to deliver failed"},
	{PartitionDropped, "audit", "", "retention dropped the audit rows of a day; the detail says how many"},
}

var actionIndex = func() map[Action]ActionInfo {
	m := make(map[Action]ActionInfo, len(Actions))
	for _, a := range Actions {
		m[a.Action] = a
	}
	return m
}()

// Info returns the documentation of an action; ok is false if it is not listed.
func (a Action) Info() (info ActionInfo, ok bool) {
	info, ok = actionIndex[a]
	return info, ok
}

// Listed reports whether the action is in [Actions].
func (a Action) Listed() bool {
	_, ok := actionIndex[a]
	return ok
}
