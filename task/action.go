package task

// Action names what was done. [Actions] is the complete, documented list: the recorder
// refuses any other action.
type Action string

// The actions.
const (
	TaskAccepted        Action = "task.accepted"
	TaskRefused         Action = "task.refused"
	TaskResubmitted     Action = "task.resubmitted"
	TaskQueued          Action = "task.queued"
	TaskDuplicate       Action = "task.duplicate"
	TaskReread          Action = "task.reread"
	TaskParked          Action = "task.parked"
	TaskAssigned        Action = "task.assigned"
	TaskRequeued        Action = "task.requeued"
	TaskDegraded        Action = "task.degraded"
	TaskSucceeded       Action = "task.succeeded"
	TaskFailed          Action = "task.failed"
	TaskCancelled       Action = "task.cancelled"
	TaskExpired         Action = "task.expired"
	TaskCancelRequested Action = "task.cancel_requested"
	TaskReprioritized   Action = "task.reprioritized"
	JobSubmitted        Action = "job.submitted"
	JobCancelRequested  Action = "job.cancel_requested"
	TaskRetried         Action = "task.retried"
	FileUploaded        Action = "file.uploaded"
	FileDeleted         Action = "file.deleted"
	JobRequested        Action = "job.requested"
	JobStatusChanged    Action = "job.status_changed"
	BatchClosed         Action = "batch.closed"
	AttemptStarted      Action = "attempt.started"
	AttemptSucceeded    Action = "attempt.succeeded"
	AttemptFailed       Action = "attempt.failed"
	ResultDuplicate     Action = "result.duplicate"
	RecordDeadLettered  Action = "record.dead_lettered"
	RecordReplayed      Action = "record.replayed"
	DeviceJoined        Action = "device.joined"
	DeviceLeft          Action = "device.left"
	DeviceSilent        Action = "device.silent"
	DeviceRefused       Action = "device.refused"
	DeviceChanged       Action = "device.changed"
	DeviceDrained       Action = "device.drained"
	DeviceUndrained     Action = "device.undrained"
	PolicyChanged       Action = "router.policy_changed"
	PolicyKept          Action = "router.policy_kept"
	ProcessStarted      Action = "process.started"
	ConfigReloaded      Action = "config.reloaded"
	BreakerOpened       Action = "breaker.opened"
	BreakerHalfOpen     Action = "breaker.half_opened"
	BreakerClosed       Action = "breaker.closed"
	CallbackSent        Action = "callback.delivered"
	CallbackFailed      Action = "callback.failed"
	CallbackGivenUp     Action = "callback.given_up"
	DataRead            Action = "data.read"
	AuditExported       Action = "audit.exported"
	AuditVerified       Action = "audit.verified"
	LedgerChecked       Action = "ledger.checked"
	RestoreAccepted     Action = "audit.restore_accepted"
	SchemaChanged       Action = "schema.changed"
	TopicsCreated       Action = "topics.created"
	PartitionDropped    Action = "audit.partition_dropped"
	RecordedAgain       Action = "audit.recorded_again"
	TopicReplaced       Action = "audit.topic_replaced"
	RecordsMissed       Action = "audit.records_missed"
	RowsRecorded        Action = "audit.rows_recorded"
	JobCompleted        Action = "job.finished"
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
	{TaskAccepted, "producer, router", Pending, "a task was accepted: by the API, or by the router if another client wrote it to its topic"},
	{TaskRefused, "producer", "", "a submit was refused; the detail names the invalid fields"},
	{TaskResubmitted, "producer", "", "a finished task was submitted again: it does not run again, and the answer stays"},
	{TaskQueued, "router", Pending, "a router read the task and holds it until a device has a free credit"},
	{TaskDuplicate, "router", "", "a second record with the same tenant and task_id was dropped, or the same record, if it was read again after its claim had expired (router.claim_ttl)"},
	{TaskReread, "router", "", "the record of a finished task was read again, or a requeued copy of it, because a process died after it had written what the task became; events of that process, such as task.assigned or task.succeeded, may be missing; the detail has the state"},
	{TaskParked, "router", Pending, "the task waits for longer than its record may be kept, or holds up others: it was written to tasks.parked, where it waits on"},
	{TaskAssigned, "router", Assigned, "a device was chosen; the detail says why"},
	{BatchClosed, "batcher", "", "the task was sent to its device in a batch; the detail says why the batch closed and how large it was"},
	{AttemptStarted, "workers", Running, "the request is sent to the device"},
	{AttemptSucceeded, "workers", "", "the device answered"},
	{AttemptFailed, "workers", "", "the attempt failed; error class and HTTP status say how"},
	{TaskRequeued, "workers, router, audit", Pending, "the task waits again: for a retry on this or another device, because a stopping worker gave it back, or because its result was deleted from Kafka before it was recorded"},
	{TaskDegraded, "workers", "", "the task continues with a smaller model"},
	{TaskSucceeded, "workers", "", "the task succeeded and its result was written"},
	{TaskFailed, "workers, router, audit", "", "the task failed; the detail lists the attempts and their errors"},
	{TaskCancelled, "router, workers", "", "the task was stopped because it was cancelled"},
	{TaskExpired, "router, workers", "", "the deadline passed before the task finished"},
	{TaskCancelRequested, "api", "", "a user asked to cancel the task"},
	{TaskReprioritized, "api", "", "a user changed the priority of a waiting task; the detail has the old and the new one"},
	{JobSubmitted, "api", "", "a user announced a job before submitting its tasks; the detail has the file's name, fingerprint and size"},
	{JobCancelRequested, "api", "", "a user asked to cancel what has not finished of a job"},
	{FileUploaded, "api", "", "a user uploaded a file; the detail has its name, purpose, size and SHA-256"},
	{FileDeleted, "api", "", "a user deleted a file"},
	{JobRequested, "api", "", "a user asked to run a stored file as a job: created a batch of OpenAI's API; the detail has the file, the endpoint and the completion window"},
	{JobStatusChanged, "api", "", "a job that is made of a stored file has another status as a batch of OpenAI's API; the detail has it, and the files that were written"},
	{TaskRetried, "api", Pending, "a user asked to run a finished task again: a new generation of it begins; the detail says why"},
	{JobCompleted, "audit", "", "every task of a job has finished: its counts were stored, and its callback is due; the detail has the round and the digests of these rows"},
	{ResultDuplicate, "audit", "", "a second result of a finished task was discarded"},
	{RecordDeadLettered, "every stage", "", "a record that cannot be processed went to the dead-letter topic; the detail says why, and where it came from"},
	{RecordReplayed, "cli", "", "a dead letter was written back to its topic"},
	{DeviceJoined, "api, router", "", "a device sent its first heartbeat"},
	{DeviceLeft, "api", "", "a device announced that it leaves"},
	{DeviceSilent, "router", "", "a device sent no heartbeat for devices.heartbeat_timeout"},
	{DeviceRefused, "api", "", "a heartbeat was refused; the detail says why"},
	{DeviceChanged, "api", "", "a device says something else of itself than before: its URL, models, tags, slots, weight, or that it drains; the detail has the old and the new values"},
	{DeviceDrained, "api", "", "an operator drained a device: it gets no new tasks"},
	{DeviceUndrained, "api", "", "an operator undrained a device"},
	{PolicyChanged, "api", "", "an operator changed the policy of the routers; the detail has the old and the new one"},
	{PolicyKept, "api", "", "an operator set the policy that was in force already, or reset one that was not set; the detail has it, and who set it when"},
	{ProcessStarted, "every stage", "", "a process of batchyard started; the detail has its stages, its version, and the SHA-256 of its settings, as batchyard config print shows them"},
	{ConfigReloaded, "every stage", "", "a process loaded a changed configuration file with another policy; the detail has the old and the new one"},
	{BreakerOpened, "workers", "", "a device failed too often: its breaker lets no requests through for a while"},
	{BreakerHalfOpen, "workers", "", "the breaker lets one probe at a time through to test the device"},
	{BreakerClosed, "workers", "", "a probe succeeded: the breaker lets all requests through"},
	{CallbackSent, "callbacks", "", "the receiver accepted the callback"},
	{CallbackFailed, "callbacks", "", "a delivery failed and will be retried"},
	{CallbackGivenUp, "callbacks", "", "the last delivery failed: there are no further retries"},
	{DataRead, "api, cli", "", "a client or a person read tasks, answers, jobs, events, dead letters or the audit log: the resource type says what, and the detail with which operation. The first time in a minute is a row of its own, the others of that minute are one row with their number"},
	{AuditExported, "cli", "", "a person wrote rows of the audit log to a file; the detail says which"},
	{AuditVerified, "cli", "", "a person verified the audit log; the detail has the verdict"},
	{LedgerChecked, "cli", "", "a person checked the ledger; the detail has the verdict"},
	{SchemaChanged, "cli", "", "a person migrated the database"},
	{TopicsCreated, "cli", "", "a person created the topics that were missing"},
	{PartitionDropped, "audit", "", "retention dropped the audit rows of one day; the detail says how many"},
	{RecordedAgain, "audit", "", "Postgres had lost records that it had confirmed, as after a failover; they were recorded again from Kafka, and the detail says which"},
	{TopicReplaced, "audit", "", "a topic was deleted and created again, belongs to another cluster, or lost its last records; recording continued there, and the detail says which offsets of the old one are missing"},
	{RecordsMissed, "audit, router, batcher, workers", "", "Kafka deleted records before the stage read them; the detail says which, and tasks that were lost with them run again or end"},
	{RowsRecorded, "audit", "", "results were recorded in a transaction with no other row; the column row_digests says what was written"},
	{RestoreAccepted, "cli", "", "an operator accepted that the database was restored from a backup, so that older checkpoints no longer count where it lacks rows; the detail has the reason"},
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
