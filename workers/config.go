package workers

import "time"

// Config configures the workers.
type Config struct {
	MaxInFlight     int               `yaml:"max_in_flight" default:"4096" unit:"records" min:"16" doc:"Records of batches held in memory."`
	MaxBytes        int64             `yaml:"max_bytes" default:"128MiB" unit:"bytes" min:"1048576" doc:"Bytes of batches held in memory."`
	RequestTimeout  time.Duration     `yaml:"timeout" default:"5m" min:"10ms" max:"24h" doc:"How long one request to a device may take."`
	MaxAnswer       int64             `yaml:"max_answer" default:"3MiB" unit:"bytes" min:"1024" max:"4194304" doc:"A task's answer larger than this fails the task; it must fit into the results topic."`
	MaxBatchedTasks int               `yaml:"max_merged" default:"128" unit:"tasks" min:"1" max:"2048" doc:"Tasks merged into one request where the endpoint takes lists."`
	MaxAttempts     int               `yaml:"max_attempts" default:"5" unit:"attempts" min:"1" max:"20" doc:"Attempts that a task gets when it does not say; 429 answers do not count."`
	LocalRetries    int               `yaml:"local_retries" default:"1" unit:"attempts" min:"0" max:"10" doc:"Attempts on the same device after the first failed, before another device is tried."`
	BackoffMin      time.Duration     `yaml:"backoff_min" default:"100ms" min:"1ms" doc:"Backoff after the first failure; doubled for each further one, with jitter."`
	BackoffMax      time.Duration     `yaml:"backoff_max" default:"30s" min:"1ms" doc:"Longest backoff."`
	RetryBudget     float64           `yaml:"retry_budget" default:"0.2" unit:"retries a request" min:"0" max:"10" doc:"Retries on a device may be at most this share of its requests (and ten more); beyond, tasks go back with the longest backoff."`
	Fallback        map[string]string `yaml:"fallback" doc:"For tasks that allow it (degrade): the smaller model to use when a model's attempts are used up."`
	BreakerFails    int               `yaml:"breaker_failures" default:"5" unit:"requests" min:"1" doc:"Failures in a row that open a device's breaker."`
	BreakerRatio    float64           `yaml:"breaker_ratio" default:"0.5" unit:"share" min:"0.01" max:"1" doc:"Share of failures that opens it, of at least 20 requests within breaker_window."`
	BreakerWindow   time.Duration     `yaml:"breaker_window" default:"10s" min:"1s" doc:"Rolling window in which failures are counted."`
	BreakerOpen     time.Duration     `yaml:"breaker_open" default:"5s" min:"10ms" doc:"How long an open breaker lets nothing through before one request tests the device; doubled for each further time in a row."`
	BreakerOpenMax  time.Duration     `yaml:"breaker_open_max" default:"2m" min:"10ms" max:"24h" doc:"The longest that a breaker stays open."`
	HangFactor      float64           `yaml:"hang_factor" default:"20" unit:"requests" min:"2" max:"10000" doc:"A device where requests run and none ended for so many times what one usually takes hangs: its breaker opens."`
	HangMin         time.Duration     `yaml:"hang_min" default:"1s" min:"10ms" max:"1h" doc:"A device is not held to hang before this."`
	DeviceKeyEnv    map[string]string `yaml:"device_key_env" doc:"Environment variable that holds the API key of a device, by device id; * is for all others."`
	DrainTimeout    time.Duration     `yaml:"drain_timeout" default:"20s" doc:"How long a stopping worker lets running requests finish before it gives them back."`
	RebalanceEvery  time.Duration     `yaml:"rebalance_every" default:"5s" min:"10ms" max:"10m" doc:"How often workers look whether devices are silent, draining or unevenly loaded, and give back what waits there."`
	RebalanceSpread float64           `yaml:"rebalance_spread" default:"0.2" unit:"share" min:"0.01" max:"10" doc:"Waiting work moves when the times in which the devices would be done with their work differ by more than this (standard deviation / mean)."`
	ReportInterval  time.Duration     `yaml:"report_interval" default:"500ms" min:"10ms" doc:"How often learned rates and breakers are shared with the routers through Redis."`
}
