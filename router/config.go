package router

import "time"

// Config is the settings of the router.
type Config struct {
	Policy          string            `yaml:"policy" live:"true" default:"expected_finish" enum:"expected_finish,fifo,priority,round_robin,weighted_round_robin,least_connections,hash,weighted_random,load_formula,power_of_two,prequal" doc:"How a device is chosen among the candidates. docs/routing.md compares the policies."`
	Binding         string            `yaml:"binding" live:"true" default:"auto" enum:"auto,late,early" doc:"When a task is bound to a device. late: when the device can start it soon, so that tasks wait in the router. early: on arrival, so that tasks wait in the device's queue. auto: as published for the policy."`
	MaxPendingTasks int               `yaml:"max_pending_tasks" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Maximum number of tasks held in memory per tasks topic. Of the rest of the backlog, the router knows where it is, and reads it when its turn comes."`
	MaxPendingBytes int64             `yaml:"max_pending_bytes" default:"64MiB" unit:"bytes" min:"1048576" doc:"Maximum size of the records held in memory per tasks topic."`
	MaxAsideBytes   int64             `yaml:"max_aside_bytes" default:"64MiB" unit:"bytes" min:"65536" doc:"Maximum memory, per tasks topic, for where the tasks are that are not held in memory: about 5 bytes per task, and 400 per tenant, model and partition. When it is used up, the topic is not read on."`
	MaxRoundTasks   int               `yaml:"max_round_tasks" default:"256" unit:"tasks" min:"1" max:"4096" doc:"Maximum number of tasks assigned per round, which is one round trip to Redis."`
	MaxPrefetch     int               `yaml:"max_prefetch" default:"256" unit:"tasks" min:"1" max:"4096" doc:"Maximum prefetch of a device with late binding: tasks assigned to it beyond its slots. The actual prefetch follows from its slots, its service time and the dispatch latency, and is at least 1."`
	MaxDeviceQueue  int               `yaml:"max_device_queue" default:"1024" unit:"tasks" min:"1" max:"65536" doc:"Maximum number of tasks in a device's queue with early binding."`
	DispatchLatency time.Duration     `yaml:"dispatch_latency" default:"5ms" doc:"Time from an assignment to the start of its request. Used in the expected finish until the workers have measured it."`
	SlowStart       time.Duration     `yaml:"slow_start" default:"10s" max:"1h" doc:"A device that joins a busy fleet, or returns to it, gets its full credits gradually over this time. 0: at once."`
	ProbeInterval   time.Duration     `yaml:"probe_interval" default:"30s" min:"1s" max:"24h" doc:"A device that the policy has not chosen for this long gets one task anyway, to keep the measurements about it current."`
	ClaimTTL        time.Duration     `yaml:"claim_ttl" default:"5m" min:"1s" doc:"Minimum time that Redis keeps a claim, which is the mark that makes a second record of the same task a duplicate. At most twice as long."`
	ShareNormal     float64           `yaml:"share_normal" default:"0.2" unit:"share of work" min:"0" max:"0.4" doc:"Share of the work that goes to normal tasks while there are always high ones."`
	ShareLow        float64           `yaml:"share_low" default:"0.06" unit:"share of work" min:"0" max:"0.4" doc:"Share of the work that goes to low tasks while there are always high and normal ones."`
	LevelBoost      time.Duration     `yaml:"level_boost" default:"30s" doc:"Head start that one level (0 to 9 within a priority) gives: a task comes before tasks one level lower that arrived up to this much earlier."`
	Tenants         map[string]string `yaml:"tenant_weights" doc:"Weights of tenants within a priority: a tenant with weight 2 gets twice the work of one with weight 1 while both have tasks waiting. The default is 1."`
	Weights         map[string]string `yaml:"load_weights" live:"true" doc:"For load_formula: the weight of each figure (cpu, mem, io, latency, queue), or preset: balanced, compute or edge."`
	HashBy          string            `yaml:"hash_by" default:"session" enum:"session,tenant,client" doc:"For hash: tasks with the same value of this go to the same device. Tasks without a session are spread by their task_id."`
	RefreshInterval time.Duration     `yaml:"refresh_interval" default:"1s" min:"50ms" doc:"How often heartbeats, learned rates and the policy are read from Redis."`
	DrainTimeout    time.Duration     `yaml:"drain_timeout" default:"10s" doc:"How long a stopping router waits for its last writes."`

	BatchCreditsPerSlot int `yaml:"batch_credits_per_slot" default:"32" unit:"tasks" min:"1" max:"1024" doc:"Number of tasks that share one slot of a device at batched endpoints (embeddings, completions)."`
}
