package waiting

// Reason is why something waits. It is a label of metrics, and a word in `tasks why`.
type Reason string

// The reasons. [Reasons] explains them.
const (
	Later       Reason = "later"
	NoDevice    Reason = "no_device"
	Silent      Reason = "silent"
	Down        Reason = "down"
	Draining    Reason = "draining"
	Unserved    Reason = "unserved"
	BreakerOpen Reason = "breaker_open"
	Throttled   Reason = "throttled"
	NoRoom      Reason = "no_room"
	Endpoint    Reason = "endpoint"
	Busy        Reason = "busy"
	Running     Reason = "running"
	Unread      Reason = "unread"
	Kafka       Reason = "kafka"
	Redis       Reason = "redis"
	Postgres    Reason = "postgres"
	Refused     Reason = "refused"
	Stuck       Reason = "stuck"
)

// Kind says what follows from a reason.
type Kind string

// The kinds.
const (
	// Expected waiting ends by itself, or when someone changes the fleet, the configuration or an endpoint.
	// It is never a stall, however long it takes.
	Expected Kind = "expected"
	// Moving is waiting behind others. It is a stall once these no longer move either.
	Moving Kind = "moving"
	// Blocked should end within moments. It is a stall if it does not.
	Blocked Kind = "blocked"
)

// Explanation describes a reason.
type Explanation struct {
	Reason Reason
	Kind   Kind
	Means  string // what waits for what
	Remedy string // what makes it move
}

// Reasons is the list of all reasons.
var Reasons = []Explanation{
	{Later, Expected, "its time has not come: `not_before`, or the backoff before the next attempt", "nothing; it goes on by itself"},
	{NoDevice, Expected, "no device serves its model and has its capability tags", "add a device with the model and tags, or cancel the task"},
	{Silent, Expected, "the devices that could run it have missed their heartbeats", "restart the devices or their agents"},
	{Down, Expected, "the devices that could run it do not answer", "the cause stands at each of them, and in `batchyard devices list`; restart or repair them"},
	{Draining, Expected, "the devices that could run it are draining", "undrain one: `batchyard devices undrain`"},
	{Unserved, Expected, "no batcher or no worker serves the devices that could run it", "start the stages batcher and workers"},
	{BreakerOpen, Expected, "the devices that could run it fail, and their breakers are open", "repair the devices; breakers close by themselves"},
	{Throttled, Expected, "the devices that could run it asked for a pause (429)", "nothing, or give the devices more room"},
	{NoRoom, Expected, "the stage has no memory for it, and has not taken it out of Kafka yet", "nothing while what is ahead moves; otherwise raise `router.max_aside_bytes`"},
	{Endpoint, Expected, "the user's endpoint did not accept it; it is delivered again later", "repair the endpoint"},
	{Busy, Moving, "others go first, or every device that could run it is busy", "nothing, or add devices"},
	{Running, Moving, "a request for it is running on a device", "nothing; the request ends by `workers.request_timeout`"},
	{Unread, Blocked, "it is in Kafka, and the stage that should read it does not", "start the stage, or see its log"},
	{Kafka, Blocked, "Kafka does not answer, or does not take what the stage writes", "repair Kafka"},
	{Redis, Blocked, "Redis does not answer", "repair Redis"},
	{Postgres, Blocked, "Postgres does not answer, or does not accept writes", "repair Postgres"},
	{Refused, Blocked, "Kafka refuses what became of it, so it is tried again and again", "see what the log says of the topic"},
	{Stuck, Blocked, "nothing is known that it waits for", "restart the stage, keep its log, and report it"},
}

var explanations = func() map[Reason]Explanation {
	m := make(map[Reason]Explanation, len(Reasons))
	for _, e := range Reasons {
		m[e.Reason] = e
	}
	return m
}()

// Explain describes a reason.
func (r Reason) Explain() Explanation { return explanations[r] }
