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
	RedisErrors   *prometheus.CounterVec   // operation
	RedisSeconds  *prometheus.HistogramVec // operation
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
}

// Router counts what is read, held and assigned.
type Router struct {
	Read          *prometheus.CounterVec // topic
	Duplicates    prometheus.Counter
	Waiting       *prometheus.GaugeVec // priority
	WindowBytes   prometheus.Gauge
	Assigned      *prometheus.CounterVec   // device
	WaitSeconds   *prometheus.HistogramVec // priority
	RoundSeconds  prometheus.Histogram
	RoundPicks    prometheus.Histogram
	Parked        *prometheus.CounterVec // reason
	Ended         *prometheus.CounterVec // state
	CreditsHeld   *prometheus.GaugeVec   // device
	DevicesSilent prometheus.Gauge
	ClaimErrors   prometheus.Counter
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
	Attempts       *prometheus.CounterVec   // device, outcome: ok or an error class
	AttemptSeconds *prometheus.HistogramVec // device
	Running        *prometheus.GaugeVec     // device
	Requests       *prometheus.CounterVec   // endpoint, status class: 2xx, 4xx, none …
	Requeued       *prometheus.CounterVec   // reason
	Ended          *prometheus.CounterVec   // state
	Tokens         *prometheus.CounterVec   // direction: in, out
	BreakerState   *prometheus.GaugeVec     // device; 0 closed, 1 half open, 2 open
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
	Chunks           *prometheus.CounterVec // outcome: ok, retried, lost, bisected, repeated (with care)
	ChunkRows        prometheus.Histogram
	CommitSeconds    prometheus.Histogram
	LagSeconds       prometheus.Histogram
	PostgresDown     prometheus.Gauge
	DefaultPartition prometheus.Counter
	DefaultRows      prometheus.Gauge
	Waiters          prometheus.Gauge
	Checkpoints      *prometheus.CounterVec // outcome: ok, unchanged, file_failed, failed
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
	Requests     *prometheus.CounterVec   // route, method, status
	Seconds      *prometheus.HistogramVec // route, method
	InFlight     prometheus.Gauge
	BodyBytes    prometheus.Gauge
	BodiesFull   prometheus.Counter
	Panics       prometheus.Counter
	RefusedQuiet prometheus.Counter
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

// New makes the metrics and registers them. A nil reg makes metrics that nobody
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
	}
}

func newStream(f factory) Stream {
	return Stream{
		Produced:          f.counters("stream_produced_records_total", "Records that all in-sync replicas have.", "topic"),
		ProducedBytes:     f.counters("stream_produced_bytes_total", "Bytes of the values of produced records.", "topic"),
		ProduceSeconds:    f.histograms("stream_produce_seconds", "From asking to write to the acknowledgement.", seconds, "topic"),
		ProduceErrors:     f.counters("stream_produce_errors_total", "Writes that the broker refused or did not answer; most are tried again.", "topic"),
		Consumed:          f.counters("stream_consumed_records_total", "Records handed to a stage.", "group", "topic"),
		ConsumedBytes:     f.counters("stream_consumed_bytes_total", "Bytes of the values of consumed records.", "group", "topic"),
		FetchErrors:       f.counters("stream_fetch_errors_total", "Fetches that the broker refused or did not answer.", "group", "topic"),
		Skipped:           f.counters("stream_skipped_records_total", "Records passed over after a restart because the commit said that they are finished.", "group", "topic"),
		InFlight:          f.gauges("stream_in_flight_records", "Records handed out and not finished.", "group", "topic"),
		InFlightBytes:     f.gauges("stream_in_flight_bytes", "Bytes handed out and not finished.", "group", "topic"),
		Spread:            f.gauges("stream_spread_records", "Records between the lowest unfinished and the highest finished, of the worst partition.", "group", "topic"),
		Stragglers:        f.counters("stream_stragglers_total", "Records that held up the commit of a partition for too long.", "group", "topic"),
		Lag:               f.gauges("stream_lag_records", "Records in the log that the group has not finished.", "group", "topic"),
		Partitions:        f.gauges("stream_partitions", "Partitions that this process owns.", "group", "topic"),
		Rebalances:        f.counters("stream_rebalances_total", "Generations of the group that this process joined.", "group", "topic"),
		Commits:           f.counters("stream_commits_total", "Offset commits.", "group", "topic"),
		CommitErrors:      f.counters("stream_commit_errors_total", "Offset commits that the broker refused or did not answer.", "group", "topic"),
		OutboxWaiting:     f.gauges("stream_outbox_waiting_units", "Units put and not yet acknowledged.", "outbox"),
		OutboxFlushes:     f.counters("stream_outbox_flushes_total", "Flushes of an outbox.", "outbox"),
		OutboxFlushUnits:  f.histograms("stream_outbox_flush_units", "Units written in one flush.", counts, "outbox"),
		OutboxRetries:     f.counters("stream_outbox_retries_total", "Flushes tried again because the broker did not take them.", "outbox"),
		DeadLetters:       f.counters("stream_dead_letters_total", "Records set aside because they cannot be processed.", "stage", "reason"),
		BrokerUnreachable: f.gauges("stream_broker_unreachable", "1 while the broker does not answer.", "use"),
	}
}

func newDevice(f factory) Device {
	return Device{
		Heartbeats:    f.counters("device_heartbeats_total", "Heartbeats received.", "outcome"),
		Known:         f.gauge("device_known", "Devices whose heartbeat is fresh."),
		RedisErrors:   f.counters("device_redis_errors_total", "Calls to Redis without a good answer.", "operation"),
		RedisSeconds:  f.histograms("device_redis_seconds", "Duration of calls to Redis.", fine, "operation"),
		LeasesLost:    f.counter("device_leases_lost_total", "Leases that had run out, or that Redis forgot, when they were to be renewed."),
		CreditsTaken:  f.counter("device_credits_taken_total", "Credits granted to this process."),
		CreditsFreed:  f.counter("device_credits_freed_total", "Credits given back by this process."),
		CreditsDenied: f.counter("device_credits_denied_total", "Credits wanted and not granted, because the pool was at its limit."),
	}
}

func newProducer(f factory) Producer {
	return Producer{
		Submitted:    f.counters("producer_submitted_tasks_total", "Tasks accepted and written.", "priority"),
		Refused:      f.counters("producer_refused_tasks_total", "Tasks refused, by the field that was wrong.", "field"),
		Seconds:      f.histogram("producer_submit_seconds", "From a submit to all replicas having its tasks and events.", seconds),
		CancelsAsked: f.counter("producer_cancels_asked_total", "Requests to cancel a task."),
		RecentHits:   f.counter("producer_recent_hits_total", "Status questions answered from what was submitted moments ago."),
		RecentSize:   f.gauge("producer_recent_tasks", "Recent tasks remembered in this process."),
	}
}

func newRouter(f factory) Router {
	return Router{
		Read:          f.counters("router_read_tasks_total", "Tasks read.", "topic"),
		Duplicates:    f.counter("router_duplicate_tasks_total", "Records dropped because their task was there already."),
		Waiting:       f.gauges("router_waiting_tasks", "Tasks in the window.", "priority"),
		WindowBytes:   f.gauge("router_window_bytes", "Bytes of the tasks in the window."),
		Assigned:      f.counters("router_assigned_tasks_total", "Assignments.", "device"),
		WaitSeconds:   f.histograms("router_wait_seconds", "From the task being ready to its assignment.", long, "priority"),
		RoundSeconds:  f.histogram("router_round_seconds", "Duration of a round of picks, Redis included.", fine),
		RoundPicks:    f.histogram("router_round_picks", "Assignments made in one round.", counts),
		Parked:        f.counters("router_parked_tasks_total", "Tasks set aside in the log.", "reason"),
		Ended:         f.counters("router_ended_tasks_total", "Tasks that ended in the router.", "state"),
		CreditsHeld:   f.gauges("router_credits_held", "Credits in use, as the router last saw them.", "device"),
		DevicesSilent: f.gauge("router_devices_silent", "Devices that missed three heartbeats."),
		ClaimErrors:   f.counter("router_claim_errors_total", "Rounds of claims that Redis did not answer; duplicates pass then, and Postgres keeps the first result."),
	}
}

func newBatcher(f factory) Batcher {
	return Batcher{
		Batches:     f.counters("batcher_batches_total", "Batches closed.", "reason"),
		BatchTasks:  f.histograms("batcher_batch_tasks", "Tasks in a batch.", counts, "endpoint"),
		BatchBytes:  f.histogram("batcher_batch_bytes", "Bytes in a batch.", bytes),
		WaitSeconds: f.histogram("batcher_wait_seconds", "From a batch's first assignment to its closing.", seconds),
		OpenBatches: f.gauge("batcher_open_batches", "Batches that are being filled."),
		OpenTasks:   f.gauge("batcher_open_tasks", "Assignments in open batches."),
	}
}

func newWorkers(f factory) Workers {
	return Workers{
		Attempts:       f.counters("workers_attempts_total", "Attempts ended; the outcome is ok or the class of the error.", "device", "outcome"),
		AttemptSeconds: f.histograms("workers_attempt_seconds", "Duration of attempts.", long, "device"),
		Running:        f.gauges("workers_running_tasks", "Attempts that are running.", "device"),
		Requests:       f.counters("workers_requests_total", "HTTP requests to devices.", "endpoint", "status"),
		Requeued:       f.counters("workers_requeued_tasks_total", "Tasks written back to be tried again.", "reason"),
		Ended:          f.counters("workers_ended_tasks_total", "Tasks that ended in the workers.", "state"),
		Tokens:         f.counters("workers_tokens_total", "Tokens as the devices report them.", "direction"),
		BreakerState:   f.gauges("workers_breaker_state", "0 closed, 1 half open, 2 open.", "device"),
		Degraded:       f.counter("workers_degraded_tasks_total", "Tasks that go on with a smaller model."),
		LeasesLost:     f.counter("workers_leases_lost_total", "Credit leases that ran out while their work was running."),
		TotalSeconds:   f.histograms("workers_total_seconds", "From submitted to finished.", long, "priority"),
		BudgetExceeded: f.counter("workers_retry_budget_exceeded_total", "Retries put off because they would become the load."),
	}
}

func newAudit(f factory) Audit {
	return Audit{
		Rows:             f.counter("audit_rows_total", "Audit rows committed."),
		Results:          f.counter("audit_results_total", "First terminal results committed."),
		ResultDuplicates: f.counter("audit_result_duplicates_total", "Later results that were not taken."),
		Chunks:           f.counters("audit_chunks_total", "Transactions, by how they ended.", "outcome"),
		ChunkRows:        f.histogram("audit_chunk_rows", "Audit rows in one transaction.", rows),
		CommitSeconds:    f.histogram("audit_commit_seconds", "Duration of a transaction.", seconds),
		LagSeconds:       f.histogram("audit_lag_seconds", "From an event to its committed row.", long),
		PostgresDown:     f.gauge("audit_postgres_down", "1 while Postgres does not take rows."),
		DefaultPartition: f.counter("audit_default_partition_rows_total", "Rows that went to the default partition because their day had none."),
		DefaultRows:      f.gauge("audit_default_partition_rows", "Rows that the default partition holds; more than none is an alarm."),
		Checkpoints:      f.counters("audit_checkpoints_total", "Signed checkpoints of the chains, by how they ended.", "outcome"),
		CheckpointTime:   f.gauge("audit_checkpoint_timestamp_seconds", "When this process wrote the latest signed checkpoint, in Unix time; 0: it has not."),
		Waiters:          f.gauge("audit_waiters", "Requests that wait for the end of a task."),
		PartitionsMade:   f.counter("audit_partitions_made_total", "Daily partitions made."),
		PartitionsGone:   f.counter("audit_partitions_dropped_total", "Daily partitions dropped by retention."),
	}
}

func newCallbacks(f factory) Callbacks {
	return Callbacks{
		Deliveries:      f.counters("callbacks_deliveries_total", "Deliveries, by how they ended.", "outcome"),
		DeliverySeconds: f.histogram("callbacks_delivery_seconds", "Duration of one delivery.", seconds),
		Running:         f.gauge("callbacks_running_deliveries", "Deliveries that are running."),
		Due:             f.gauge("callbacks_due", "Callbacks that are due, as last counted."),
	}
}

func newAPI(f factory) API {
	return API{
		Requests:     f.counters("api_requests_total", "HTTP requests.", "route", "method", "status"),
		Seconds:      f.histograms("api_request_seconds", "Duration of HTTP requests.", seconds, "route", "method"),
		InFlight:     f.gauge("api_in_flight_requests", "HTTP requests that are being answered."),
		BodyBytes:    f.gauge("api_body_bytes", "Bytes reserved for request bodies in memory."),
		BodiesFull:   f.counter("api_bodies_full_total", "Requests told to come back because too many bodies were in memory."),
		Panics:       f.counter("api_panics_total", "Requests that ended in a panic."),
		RefusedQuiet: f.counter("api_refused_unrecorded_total", "Refused submits beyond the rate at which they are audited."),
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
