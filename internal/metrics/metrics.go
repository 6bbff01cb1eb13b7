package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics holds every metric. Its fields may be used by any goroutine.
type Metrics struct {
	Stream    Stream
	Device    Device
	Producer  Producer
	Router    Router
	Batcher   Batcher
	Workers   Workers
	Audit     Audit
	Callbacks Callbacks
	API       API
	Waiting   Waiting
}

// Stream counts what goes through the log.
type Stream struct {
	Produced          *prometheus.CounterVec   // topic
	ProducedBytes     *prometheus.CounterVec   // topic
	ProduceSeconds    *prometheus.HistogramVec // topic
	ProduceErrors     *prometheus.CounterVec   // topic
	Consumed          *prometheus.CounterVec   // group, topic
	ConsumedBytes     *prometheus.CounterVec   // group, topic
	FetchErrors       *prometheus.CounterVec   // group, topic
	Skipped           *prometheus.CounterVec   // group, topic
	InFlight          *prometheus.GaugeVec     // group, topic
	InFlightBytes     *prometheus.GaugeVec     // group, topic
	Spread            *prometheus.GaugeVec     // group, topic
	Stragglers        *prometheus.CounterVec   // group, topic
	Recreated         *prometheus.CounterVec   // group, topic
	Missed            *prometheus.CounterVec   // group, topic
	Again             *prometheus.CounterVec   // group, topic
	Refused           *prometheus.GaugeVec     // topic
	TimesRefused      *prometheus.CounterVec   // topic
	WrongSettings     prometheus.Gauge
	Lag               *prometheus.GaugeVec     // group, topic
	Partitions        *prometheus.GaugeVec     // group, topic
	Rebalances        *prometheus.CounterVec   // group, topic
	Commits           *prometheus.CounterVec   // group, topic
	CommitErrors      *prometheus.CounterVec   // group, topic
	OutboxWaiting     *prometheus.GaugeVec     // outbox
	OutboxFlushes     *prometheus.CounterVec   // outbox
	OutboxFlushUnits  *prometheus.HistogramVec // outbox
	OutboxRetries     *prometheus.CounterVec   // outbox
	DeadLetters       *prometheus.CounterVec   // stage, reason
	BrokerUnreachable *prometheus.GaugeVec     // use: consume, produce
}

// Device counts what is kept in Redis.
type Device struct {
	Heartbeats    *prometheus.CounterVec   // outcome: ok, refused, error
	Known         prometheus.Gauge         // devices whose heartbeat is fresh
	Unserved      prometheus.Gauge         // devices without a batcher or a worker
	ClockAhead    prometheus.Gauge         // of this machine, compared with Redis
	RedisErrors   *prometheus.CounterVec   // operation
	RedisSeconds  *prometheus.HistogramVec // operation
	RedisDown     prometheus.Gauge
	RedisMayEvict prometheus.Gauge
	RedisEvicted  prometheus.Counter
	LeasesLost    prometheus.Counter
	CreditsTaken  prometheus.Counter
	CreditsFreed  prometheus.Counter
	CreditsDenied prometheus.Counter
}

// Producer counts what is submitted.
type Producer struct {
	Submitted    *prometheus.CounterVec // priority
	Refused      *prometheus.CounterVec // field class: see package producer
	Seconds      prometheus.Histogram
	CancelsAsked prometheus.Counter
	RecentHits   prometheus.Counter
	RecentSize   prometheus.Gauge
	Unchecked    prometheus.Counter
	Retries      prometheus.Counter
}

// Router counts what is read, held and assigned.
type Router struct {
	Read          *prometheus.CounterVec // topic
	Duplicates    prometheus.Counter
	Waiting       *prometheus.GaugeVec // priority
	WindowBytes   prometheus.Gauge
	Aside         *prometheus.GaugeVec     // topic
	AsideBytes    *prometheus.GaugeVec     // topic
	Assigned      *prometheus.CounterVec   // device_id
	WaitSeconds   *prometheus.HistogramVec // priority
	RoundSeconds  prometheus.Histogram
	RoundPicks    prometheus.Histogram
	Parked        *prometheus.CounterVec // reason
	Ended         *prometheus.CounterVec // state
	CreditsHeld   *prometheus.GaugeVec   // device_id
	DevicesSilent prometheus.Gauge
	ClaimErrors   prometheus.Counter
	Unchecked     prometheus.Counter
	Contested     prometheus.Gauge
}

// Batcher counts the batches that close.
type Batcher struct {
	Batches     *prometheus.CounterVec   // reason
	BatchTasks  *prometheus.HistogramVec // endpoint
	BatchBytes  prometheus.Histogram
	WaitSeconds prometheus.Histogram
	OpenBatches prometheus.Gauge
	OpenTasks   prometheus.Gauge
}

// Workers counts the attempts.
type Workers struct {
	Attempts       *prometheus.CounterVec   // device_id, outcome: ok or an error class
	AttemptSeconds *prometheus.HistogramVec // device_id
	Running        *prometheus.GaugeVec     // device_id
	Requests       *prometheus.CounterVec   // endpoint, status class: 2xx, 4xx, none …
	Requeued       *prometheus.CounterVec   // reason
	Ended          *prometheus.CounterVec   // state
	Tokens         *prometheus.CounterVec   // direction: input, output
	BreakerState   *prometheus.GaugeVec     // device_id; 0 closed, 1 half open, 2 open
	Degraded       prometheus.Counter
	LeasesLost     prometheus.Counter
	TotalSeconds   *prometheus.HistogramVec // priority; from submitted to finished
	BudgetExceeded prometheus.Counter
}

// Audit counts what goes into Postgres.
type Audit struct {
	Rows             prometheus.Counter
	Results          prometheus.Counter
	ResultDuplicates prometheus.Counter
	Chunks           *prometheus.CounterVec // outcome: ok, retried, timed_out, lost, bisected, repeated (with care)
	ChunkRows        prometheus.Histogram
	CommitSeconds    prometheus.Histogram
	LagSeconds       prometheus.Histogram
	PostgresDown     prometheus.Gauge
	OldestWaiting    prometheus.Gauge
	DefaultPartition prometheus.Counter
	DefaultRows      prometheus.Gauge
	Breaks           *prometheus.CounterVec // kind: recorded_again, topic_replaced, records_missed
	MissedRecords    prometheus.Counter
	LostTasks        *prometheus.CounterVec // outcome: run_again, failed
	Waiters          prometheus.Gauge
	Checkpoints      *prometheus.CounterVec // outcome: ok, unchanged, file_failed, copy_failed, failed
	Cosignatures     *prometheus.CounterVec // outcome: ok, failed, refused
	CheckpointTime   prometheus.Gauge
	PartitionsMade   prometheus.Counter
	PartitionsGone   prometheus.Counter
}

// Callbacks counts the deliveries.
type Callbacks struct {
	Deliveries      *prometheus.CounterVec // outcome: delivered, failed, given_up
	DeliverySeconds prometheus.Histogram
	Running         prometheus.Gauge
	Due             prometheus.Gauge
}

// API counts the HTTP requests.
type API struct {
	Requests   *prometheus.CounterVec   // route, method, status
	Seconds    *prometheus.HistogramVec // route, method
	InFlight   prometheus.Gauge
	BodyBytes  prometheus.Gauge
	BodiesFull prometheus.Counter
	Panics     prometheus.Counter
	Waiting    prometheus.Gauge
	Followed   prometheus.Gauge
	Answers    *prometheus.CounterVec // source
}

// Waiting is what stands still in the stages: see package waiting.
type Waiting struct {
	Oldest  *prometheus.GaugeVec // stage, reason
	Stalled *prometheus.GaugeVec // stage
}

// Buckets of the histograms.
var (
	seconds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	long    = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400}
	counts  = prometheus.ExponentialBuckets(1, 2, 14)    // 1 … 8192
	bytes   = prometheus.ExponentialBuckets(256, 4, 10)  // 256 B … 64 MiB
	rows    = prometheus.ExponentialBuckets(1, 2.5, 13)  // 1 … 60 k
	fine    = prometheus.ExponentialBuckets(1e-5, 3, 12) // 10 µs … 1.8 s
)

// New makes the metrics and registers them. A nil reg makes metrics that nothing
// scrapes, for tests and commands that end at once.
func New(reg prometheus.Registerer) *Metrics {
	f := factory{promauto.With(reg)}
	return &Metrics{
		Stream:    newStream(f),
		Device:    newDevice(f),
		Producer:  newProducer(f),
		Router:    newRouter(f),
		Batcher:   newBatcher(f),
		Workers:   newWorkers(f),
		Audit:     newAudit(f),
		Callbacks: newCallbacks(f),
		API:       newAPI(f),
		Waiting:   newWaiting(f),
	}
}

func newStream(f factory) Stream {
	return Stream{
		Produced:          f.counters("stream_produced_records_total", "Records acknowledged by all in-sync replicas.", "topic"),
		ProducedBytes:     f.counters("stream_produced_bytes_total", "Bytes of the values of produced records.", "topic"),
		ProduceSeconds:    f.histograms("stream_produce_seconds", "Time from the write request to the acknowledgement.", seconds, "topic"),
		ProduceErrors:     f.counters("stream_produce_errors_total", "Writes that the broker refused or did not answer. Most are retried.", "topic"),
		Consumed:          f.counters("stream_consumed_records_total", "Records handed to a stage.", "group", "topic"),
		ConsumedBytes:     f.counters("stream_consumed_bytes_total", "Bytes of the values of consumed records.", "group", "topic"),
		FetchErrors:       f.counters("stream_fetch_errors_total", "Fetches that the broker refused or did not answer.", "group", "topic"),
		Skipped:           f.counters("stream_skipped_records_total", "Records skipped after a restart because the commit marks them as finished.", "group", "topic"),
		InFlight:          f.gauges("stream_in_flight_records", "Records handed to a stage and not finished.", "group", "topic"),
		InFlightBytes:     f.gauges("stream_in_flight_bytes", "Bytes of the records in flight.", "group", "topic"),
		Spread:            f.gauges("stream_spread_records", "Records between the lowest unfinished and the highest finished offset, of the worst partition.", "group", "topic"),
		Recreated:         f.counters("stream_recreated_total", "Partitions that were read from their start because their topic was recreated, or belongs to another cluster.", "group", "topic"),
		Missed:            f.counters("stream_missed_records_total", "Offsets of records that were deleted from the topic before the group read them. Alert if it grows.", "group", "topic"),
		Again:             f.counters("stream_records_again_total", "Records handed to a stage again, because Kafka refused for good what they became.", "group", "topic"),
		Refused:           f.gauges("stream_refused_records", "Records that cannot be finished, because Kafka refuses what they became. Alert if it is above 0.", "topic"),
		TimesRefused:      f.counters("stream_refused_times_total", "Writes whose timestamps the broker refused; they were repeated without. A clock is wrong. Alert if it grows.", "topic"),
		WrongSettings:     f.gauge("stream_wrong_topic_settings", "Settings of topics with which Kafka may delete accepted tasks, or what they became, before they have ended. Alert if it is above 0."),
		Stragglers:        f.counters("stream_stragglers_total", "Records that held up the commit of a partition for too long.", "group", "topic"),
		Lag:               f.gauges("stream_lag_records", "Records in the topic that the group has not finished.", "group", "topic"),
		Partitions:        f.gauges("stream_partitions", "Partitions owned by this process.", "group", "topic"),
		Rebalances:        f.counters("stream_rebalances_total", "Generations of the group that this process joined.", "group", "topic"),
		Commits:           f.counters("stream_commits_total", "Offset commits.", "group", "topic"),
		CommitErrors:      f.counters("stream_commit_errors_total", "Offset commits that the broker refused or did not answer.", "group", "topic"),
		OutboxWaiting:     f.gauges("stream_outbox_waiting_units", "Units in an outbox that are not acknowledged yet.", "outbox"),
		OutboxFlushes:     f.counters("stream_outbox_flushes_total", "Flushes of an outbox.", "outbox"),
		OutboxFlushUnits:  f.histograms("stream_outbox_flush_units", "Units written per flush.", counts, "outbox"),
		OutboxRetries:     f.counters("stream_outbox_retries_total", "Flushes that were retried because the broker did not accept them.", "outbox"),
		DeadLetters:       f.counters("stream_dead_letters_total", "Records sent to the dead-letter topic.", "stage", "reason"),
		BrokerUnreachable: f.gauges("stream_broker_unreachable", "1 while the broker does not answer.", "use"),
	}
}

func newDevice(f factory) Device {
	return Device{
		Heartbeats:    f.counters("device_heartbeats_total", "Heartbeats received.", "outcome"),
		Known:         f.gauge("device_known_devices", "Devices with a recent heartbeat."),
		Unserved:      f.gauge("device_unserved_devices", "Devices that get no work because no batcher reads their assignments, or no worker their batches. Alert if it stays above 0."),
		ClockAhead:    f.gauge("clock_ahead_seconds", "How far this machine's clock is ahead of Redis', whose time is used. Alert if it is far from 0."),
		RedisErrors:   f.counters("device_redis_errors_total", "Failed calls to Redis.", "operation"),
		RedisSeconds:  f.histograms("device_redis_seconds", "Duration of calls to Redis.", fine, "operation"),
		RedisDown:     f.gauge("device_redis_down", "1 while Redis, or a master of the Redis Cluster, does not answer."),
		RedisMayEvict: f.gauge("device_redis_may_evict_keys", "1 if Redis is configured to evict keys when its memory is full. Alert if it is above 0."),
		RedisEvicted:  f.counter("device_redis_evicted_keys_total", "Keys that Redis has evicted while this process watched. Alert if it grows."),
		LeasesLost:    f.counter("device_leases_lost_total", "Leases that had expired, or were missing in Redis, when they were due for renewal."),
		CreditsTaken:  f.counter("device_credits_taken_total", "Credits granted to this process."),
		CreditsFreed:  f.counter("device_credits_freed_total", "Credits returned by this process."),
		CreditsDenied: f.counter("device_credits_denied_total", "Credits requested but not granted, because the device was at its limit."),
	}
}

func newProducer(f factory) Producer {
	return Producer{
		Submitted:    f.counters("producer_submitted_tasks_total", "Tasks accepted and written to Kafka.", "priority"),
		Refused:      f.counters("producer_refused_tasks_total", "Tasks refused, by the invalid field.", "field"),
		Seconds:      f.histogram("producer_submit_seconds", "Time from a submit to the acknowledgement of its tasks and events by all in-sync replicas.", seconds),
		CancelsAsked: f.counter("producer_cancel_requests_total", "Requests to cancel a task."),
		RecentHits:   f.counter("producer_recent_hits_total", "Status requests answered from recently submitted tasks."),
		RecentSize:   f.gauge("producer_recent_tasks", "Recently submitted tasks remembered by this process."),
		Unchecked:    f.counter("producer_unchecked_tasks_total", "Tasks that were accepted although Postgres did not say whether their ids are known. The routers check them again."),
		Retries:      f.counter("producer_retries_total", "Finished tasks that users asked to run again."),
	}
}

func newRouter(f factory) Router {
	return Router{
		Read:          f.counters("router_read_tasks_total", "Tasks read.", "topic"),
		Duplicates:    f.counter("router_duplicate_tasks_total", "Records dropped because they were duplicates."),
		Waiting:       f.gauges("router_pending_tasks", "Tasks in the pending window.", "priority"),
		WindowBytes:   f.gauge("router_pending_bytes", "Bytes of the tasks in the pending window."),
		Aside:         f.gauges("router_aside_tasks", "Tasks that were read and set aside: the router knows where their records are, and reads them again when their turn comes.", "topic"),
		AsideBytes:    f.gauges("router_aside_bytes", "Memory for where the tasks are that were set aside.", "topic"),
		Assigned:      f.counters("router_assigned_tasks_total", "Assignments.", "device_id"),
		WaitSeconds:   f.histograms("router_wait_seconds", "Time from a task being ready to its assignment.", long, "priority"),
		RoundSeconds:  f.histogram("router_round_seconds", "Duration of a round, including Redis.", fine),
		RoundPicks:    f.histogram("router_round_tasks", "Tasks assigned per round.", counts),
		Parked:        f.counters("router_parked_tasks_total", "Tasks parked because no device could run them.", "reason"),
		Ended:         f.counters("router_finished_tasks_total", "Tasks that reached a terminal state in the router.", "state"),
		CreditsHeld:   f.gauges("router_credits_held", "Credits in use, as last seen by the router.", "device_id"),
		DevicesSilent: f.gauge("router_silent_devices", "Devices without a heartbeat for devices.heartbeat_timeout."),
		ClaimErrors:   f.counter("router_claim_errors_total", "Rounds whose claims Redis did not answer. Duplicates then pass, and Postgres keeps the first result."),
		Contested:     f.gauge("router_contested_tasks", "Tasks that wait for Postgres to say whether their id belongs to another request. More than a few for long: the recorder is behind."),
		Unchecked:     f.counter("router_unchecked_tasks_total", "Tasks that went on although Postgres did not say whether they have been answered. One whose claim is gone, too, may run again."),
	}
}

func newBatcher(f factory) Batcher {
	return Batcher{
		Batches:     f.counters("batcher_batches_total", "Batches closed.", "reason"),
		BatchTasks:  f.histograms("batcher_batch_tasks", "Tasks per batch.", counts, "endpoint"),
		BatchBytes:  f.histogram("batcher_batch_bytes", "Bytes per batch.", bytes),
		WaitSeconds: f.histogram("batcher_wait_seconds", "Time from the first assignment of a batch to its closing.", seconds),
		OpenBatches: f.gauge("batcher_open_batches", "Open batches."),
		OpenTasks:   f.gauge("batcher_open_tasks", "Assignments in open batches."),
	}
}

func newWorkers(f factory) Workers {
	return Workers{
		Attempts:       f.counters("workers_attempts_total", "Finished attempts. The outcome is ok or the class of the error.", "device_id", "outcome"),
		AttemptSeconds: f.histograms("workers_attempt_seconds", "Duration of attempts.", long, "device_id"),
		Running:        f.gauges("workers_running_tasks", "Running attempts.", "device_id"),
		Requests:       f.counters("workers_requests_total", "HTTP requests to devices.", "endpoint", "status"),
		Requeued:       f.counters("workers_requeued_tasks_total", "Tasks requeued.", "reason"),
		Ended:          f.counters("workers_finished_tasks_total", "Tasks that reached a terminal state in the workers.", "state"),
		Tokens:         f.counters("workers_tokens_total", "Tokens as reported by the devices.", "direction"),
		BreakerState:   f.gauges("workers_breaker_state", "State of the breaker: 0 closed, 1 half open, 2 open.", "device_id"),
		Degraded:       f.counter("workers_degraded_tasks_total", "Tasks degraded to a smaller model."),
		LeasesLost:     f.counter("workers_leases_lost_total", "Leases that expired while their tasks were running."),
		TotalSeconds:   f.histograms("workers_task_seconds", "Time from the submit of a task to its end.", long, "priority"),
		BudgetExceeded: f.counter("workers_retry_budget_exceeded_total", "Retries delayed because they exceeded the retry budget."),
	}
}

func newAudit(f factory) Audit {
	return Audit{
		Rows:             f.counter("audit_rows_total", "Audit rows committed."),
		Results:          f.counter("audit_results_total", "Results committed, one per task."),
		ResultDuplicates: f.counter("audit_result_duplicates_total", "Further results of a finished task, which were discarded."),
		Chunks:           f.counters("audit_chunks_total", "Transactions, by outcome.", "outcome"),
		ChunkRows:        f.histogram("audit_chunk_rows", "Audit rows per transaction.", rows),
		CommitSeconds:    f.histogram("audit_commit_seconds", "Duration of a transaction.", seconds),
		LagSeconds:       f.histogram("audit_lag_seconds", "Time from an event to the commit of its row.", long),
		PostgresDown:     f.gauge("audit_postgres_down", "1 while Postgres does not accept rows."),
		OldestWaiting:    f.gauge("audit_oldest_unrecorded_seconds", "Age of the oldest record that was read and is not recorded, by the time in the record; 0 if none waits."),
		DefaultPartition: f.counter("audit_default_partition_rows_total", "Rows written to the default partition because their day had no partition."),
		DefaultRows:      f.gauge("audit_default_partition_rows", "Rows in the default partition. Alert if it is above 0."),
		Breaks:           f.counters("audit_breaks_total", "Times that recording could not simply continue in a partition, by kind. Alert if it grows.", "kind"),
		MissedRecords:    f.counter("audit_missed_records_total", "Records that Kafka deleted before they were recorded."),
		LostTasks:        f.counters("audit_lost_tasks_total", "Tasks whose results Kafka deleted before they were recorded, by what became of them. Alert if it grows.", "outcome"),
		Checkpoints:      f.counters("audit_checkpoints_total", "Signed checkpoints of the hash chains, by outcome.", "outcome"),
		Cosignatures:     f.counters("audit_cosignatures_total", "Answers of witnesses that were asked to cosign a checkpoint, by outcome. Alert if refused grows.", "outcome"),
		CheckpointTime:   f.gauge("audit_checkpoint_timestamp_seconds", "Unix time of the latest signed checkpoint of this process; 0 if there is none."),
		Waiters:          f.gauge("audit_waiting_requests", "Requests that wait for a task to finish."),
		PartitionsMade:   f.counter("audit_partitions_created_total", "Daily partitions created."),
		PartitionsGone:   f.counter("audit_partitions_dropped_total", "Daily partitions dropped by retention."),
	}
}

func newCallbacks(f factory) Callbacks {
	return Callbacks{
		Deliveries:      f.counters("callbacks_deliveries_total", "Deliveries, by outcome.", "outcome"),
		DeliverySeconds: f.histogram("callbacks_delivery_seconds", "Duration of deliveries.", seconds),
		Running:         f.gauge("callbacks_running_deliveries", "Running deliveries."),
		Due:             f.gauge("callbacks_due_deliveries", "Deliveries that are due, as last counted."),
	}
}

func newAPI(f factory) API {
	return API{
		Requests:   f.counters("api_requests_total", "HTTP requests.", "route", "method", "status"),
		Seconds:    f.histograms("api_request_seconds", "Duration of HTTP requests.", seconds, "route", "method"),
		InFlight:   f.gauge("api_in_flight_requests", "HTTP requests in flight."),
		BodyBytes:  f.gauge("api_body_memory_bytes", "Memory reserved for request bodies."),
		BodiesFull: f.counter("api_body_memory_exceeded_total", "Requests refused because the memory for request bodies was used up."),
		Panics:     f.counter("api_panics_total", "Requests that panicked."),
		Waiting:    f.gauge("api_waiting_requests", "Plain OpenAI requests that wait for their answers."),
		Followed:   f.gauge("api_followed_partitions", "Partitions of results that are followed because such requests wait."),
		Answers:    f.counters("api_answers_total", "Results that such requests waited for, by where the API learned of them: kafka as they were written, or postgres.", "source"),
	}
}

func newWaiting(f factory) Waiting {
	return Waiting{
		Oldest:  f.gauges("stage_oldest_seconds", "Age of the oldest thing that the stage has accepted and not finished, by why it waits; 0 if nothing waits for that reason now.", "stage", "reason"),
		Stalled: f.gauges("stage_stalled", "1 while something that could go on has not moved for longer than stall_timeout and its own bound. Alert if it is above 0.", "stage"),
	}
}

// factory adds the prefix that all names share.
type factory struct{ promauto.Factory }

func (f factory) counter(name, help string) prometheus.Counter {
	return f.NewCounter(prometheus.CounterOpts{Namespace: "batchyard", Name: name, Help: help})
}

func (f factory) counters(name, help string, labels ...string) *prometheus.CounterVec {
	return f.NewCounterVec(prometheus.CounterOpts{Namespace: "batchyard", Name: name, Help: help}, labels)
}

func (f factory) gauge(name, help string) prometheus.Gauge {
	return f.NewGauge(prometheus.GaugeOpts{Namespace: "batchyard", Name: name, Help: help})
}

func (f factory) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "batchyard", Name: name, Help: help}, labels)
}

func (f factory) histogram(name, help string, buckets []float64) prometheus.Histogram {
	return f.NewHistogram(prometheus.HistogramOpts{Namespace: "batchyard", Name: name, Help: help, Buckets: buckets})
}

func (f factory) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return f.NewHistogramVec(prometheus.HistogramOpts{Namespace: "batchyard", Name: name, Help: help, Buckets: buckets}, labels)
}
