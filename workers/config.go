package workers

import "time"

// Config configures the workers.
type Config struct {
	MaxInFlight     int               `yaml:"max_in_flight" default:"4096" unit:"records" min:"16" doc:"Maximum number of batch records held in memory."`
	MaxBytes        int64             `yaml:"max_bytes" default:"128MiB" unit:"bytes" min:"1048576" doc:"Maximum size of the batches held in memory."`
	RequestTimeout  time.Duration     `yaml:"request_timeout" default:"5m" min:"10ms" max:"24h" doc:"Timeout of one request to a device, from its start to the end of the answer."`
	Linger          time.Duration     `yaml:"linger" default:"5s" min:"0s" max:"10m" doc:"How long a request that timed out still occupies a slot of its device: engines often go on computing when the client has hung up."`
	ConnectTimeout  time.Duration     `yaml:"connect_timeout" default:"5s" min:"10ms" max:"1m" doc:"Timeout for connecting to a device."`
	MaxAnswer       int64             `yaml:"max_answer" default:"3MiB" unit:"bytes" min:"1024" max:"4194304" doc:"Maximum size of a task's output. A larger one fails the task, because it would not fit into the results topic."`
	MaxBatchedTasks int               `yaml:"max_batched_tasks" default:"128" unit:"tasks" min:"1" max:"2048" doc:"Maximum number of tasks in one request to a batched endpoint."`
	MaxAttempts     int               `yaml:"max_attempts" default:"5" unit:"attempts" min:"1" max:"20" doc:"Number of attempts for tasks that do not set max_attempts. Pauses that a device asks for, and refusals that other devices may not share, do not count: see docs/failures.md."`
	LocalRetries    int               `yaml:"local_retries" default:"1" unit:"attempts" min:"0" max:"10" doc:"Number of retries on the same device before another device is tried."`
	BackoffMin      time.Duration     `yaml:"backoff_min" default:"100ms" min:"1ms" doc:"Backoff after the first failure. It doubles with each further failure, with jitter."`
	BackoffMax      time.Duration     `yaml:"backoff_max" default:"30s" min:"1ms" doc:"Longest backoff."`
	RetryBudget     float64           `yaml:"retry_budget" default:"0.2" unit:"retries a request" min:"0" max:"10" doc:"Maximum share of a device's requests that may be retries, plus ten. Beyond it, tasks are requeued with the longest backoff."`
	Fallback        map[string]string `yaml:"fallback" doc:"For tasks with degrade: the smaller model to use after all attempts with a model have failed."`
	BreakerFails    int               `yaml:"breaker_failures" default:"5" unit:"requests" min:"1" doc:"Number of consecutive failures that opens a device's breaker."`
	BreakerRatio    float64           `yaml:"breaker_ratio" default:"0.5" unit:"share" min:"0.01" max:"1" doc:"Share of failures that opens the breaker, out of at least 20 requests within breaker_window."`
	BreakerWindow   time.Duration     `yaml:"breaker_window" default:"10s" min:"1s" doc:"Rolling window in which failures are counted."`
	BreakerOpen     time.Duration     `yaml:"breaker_open" default:"5s" min:"10ms" doc:"How long an open breaker lets no request through before it becomes half open and lets one probe through. It doubles each time in a row."`
	BreakerOpenMax  time.Duration     `yaml:"breaker_open_max" default:"2m" min:"10ms" max:"24h" doc:"Longest time that a breaker stays open."`
	HangFactor      float64           `yaml:"hang_factor" default:"20" unit:"requests" min:"2" max:"10000" doc:"A device hangs if requests are running and none has finished for this many times the usual duration. Its breaker opens."`
	HangMin         time.Duration     `yaml:"hang_min" default:"1s" min:"10ms" max:"1h" doc:"Minimum time without a finished request before a device counts as hanging."`
	DrainTimeout    time.Duration     `yaml:"drain_timeout" default:"20s" doc:"How long a stopping worker lets running requests finish before it gives them back."`
	RebalanceEvery  time.Duration     `yaml:"rebalance_every" default:"5s" min:"10ms" max:"10m" doc:"How often workers check for devices that are silent, draining or unevenly loaded, and give back the tasks that wait there."`
	RebalanceSpread float64           `yaml:"rebalance_spread" default:"0.2" unit:"share" min:"0.01" max:"10" doc:"Waiting tasks move to other devices if the times at which the devices would finish their work differ by more than this (standard deviation / mean)."`
	ReportInterval  time.Duration     `yaml:"report_interval" default:"500ms" min:"10ms" doc:"How often learned rates and breaker states are shared with the routers through Redis."`
}
