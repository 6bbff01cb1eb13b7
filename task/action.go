package task

// Action names what was done. [Actions] is the complete list and the
// documentation: an action that it lacks is never recorded.
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
	Stage   string // who emits it
	State   State  // the state that the task is in afterwards; empty: unchanged
	Meaning string
}

// Actions is every action that is ever recorded, in the order of a task's way.
var Actions = []ActionInfo{
	{TaskAccepted, "producer, router", Pending, "a task was taken: by the API, or read from its topic when another client wrote it"},
	{TaskRefused, "producer", "", "a submit was refused; the detail names the field"},
	{TaskQueued, "router", Pending, "a router read the task and holds it until a device has a credit"},
	{TaskDuplicate, "router", "", "another record with the same tenant and id was dropped"},
	{TaskParked, "router", Pending, "nothing can run the task now; it was set aside in the log and is looked at again later"},
	{TaskAssigned, "router", Assigned, "a device was chosen; the detail says why"},
	{BatchClosed, "batcher", "", "the assignment left for its device in a batch; the detail says why the batch closed and how large it was"},
	{AttemptStarted, "workers", Running, "the request goes to the device"},
	{AttemptSucceeded, "workers", "", "the device answered"},
	{AttemptFailed, "workers", "", "the attempt failed; class and status say how"},
	{TaskRequeued, "workers, router", Pending, "the task waits again: to be retried here or elsewhere, or given back by a worker that stops"},
	{TaskDegraded, "workers", "", "the task goes on with a smaller model"},
	{TaskSucceeded, "workers", "", "the result was written"},
	{TaskFailed, "workers, router", "", "the task ended without an answer; the detail holds every attempt's reason"},
	{TaskCancelled, "router, workers", "", "the task was stopped on its way because somebody cancelled it"},
	{TaskExpired, "router, workers", "", "the deadline passed first"},
	{TaskCancelAsked, "api", "", "somebody asked to cancel the task"},
	{TaskReprioritized, "api", "", "somebody changed the priority of a waiting task; the detail says from what to what"},
	{ResultDuplicate, "audit", "", "a second terminal result came and was not taken"},
	{RecordDead, "every stage", "", "a record that cannot be processed went to the dead-letter topic; the detail says why and where it came from"},
	{RecordReplayed, "cli", "", "a dead letter was written to its topic again"},
	{DeviceJoined, "api, router", "", "a device sent its first heartbeat"},
	{DeviceLeft, "api", "", "a device said that it leaves"},
	{DeviceSilent, "router", "", "a device missed three heartbeats"},
	{DeviceDrained, "api", "", "an operator drained a device: it gets nothing new"},
	{DeviceUndrained, "api", "", "an operator ended that a device is drained"},
	{PolicyChanged, "api", "", "an operator changed the routers' policy; the detail holds the old and the new"},
	{ConfigReloaded, "every stage", "", "a process took over a changed file, and chooses devices by another policy; the detail holds the old and the new"},
	{BreakerOpened, "workers", "", "a device failed too often: no requests for a while"},
	{BreakerHalfOpen, "workers", "", "a few requests test whether the device is well again"},
	{BreakerClosed, "workers", "", "the device is well again"},
	{CallbackSent, "callbacks", "", "the user's endpoint took the callback"},
	{CallbackFailed, "callbacks", "", "a delivery failed and will be tried again"},
	{CallbackGivenUp, "callbacks", "", "the last delivery failed"},
	{PartitionDropped, "audit", "", "retention dropped the audit rows of a day; the detail says how many"},
}

var actionIndex = func() map[Action]ActionInfo {
	m := make(map[Action]ActionInfo, len(Actions))
	for _, a := range Actions {
		m[a.Action] = a
	}
	return m
}()

// Info looks an action up in the list; ok is false for one that it lacks.
func (a Action) Info() (info ActionInfo, ok bool) {
	info, ok = actionIndex[a]
	return info, ok
}

// Listed reports whether the list has the action.
func (a Action) Listed() bool {
	_, ok := actionIndex[a]
	return ok
}
