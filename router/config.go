package router

import "time"

// Config is the settings of the router.
type Config struct {
	Policy          string            `yaml:"policy" live:"true" default:"expected_finish" enum:"expected_finish,fifo,priority,round_robin,weighted_round_robin,least_connections,hash,weighted_random,load_formula,power_of_two,prequal" doc:"How a device is chosen among those that may run a task. docs/routing.md tells them apart."`
	Binding         string            `yaml:"binding" live:"true" default:"auto" enum:"auto,late,early" doc:"When a task is bound to a device: late, when the device can soon start it, so that it waits here; early, when it comes, so that it queues at the device; auto: as the policy was published."`
	MaxPendingTasks int               `yaml:"window_count" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Tasks held in memory per tasks topic; the rest of the backlog stays in Kafka."`
	MaxPendingBytes int64             `yaml:"window_bytes" default:"64MiB" unit:"bytes" min:"1048576" doc:"Bytes of records held in memory per tasks topic."`
	MaxRoundTasks   int               `yaml:"round_picks" default:"256" unit:"tasks" min:"1" max:"4096" doc:"Tasks assigned in one round, which is one round trip to Redis."`
	MaxPrefetch     int               `yaml:"ahead_most" default:"256" unit:"tasks" min:"1" max:"4096" doc:"Most tasks that a device may have beyond its slots when tasks are bound late. How many it has follows from its slots, its service time and the hop to it; at least one."`
	MaxDeviceQueue  int               `yaml:"queue_ahead" default:"1024" unit:"tasks" min:"1" max:"65536" doc:"Tasks that may queue at a device when tasks are bound early."`
	DispatchLatency time.Duration     `yaml:"hop" default:"5ms" doc:"Time from an assignment to the start of its request, until the workers have measured it; part of the expected finish."`
	SlowStart       time.Duration     `yaml:"slow_start" default:"10s" max:"1h" doc:"A device that joins a fleet at work, or comes back to it, gets its full credits only after this long; 0: at once."`
	ProbeInterval   time.Duration     `yaml:"explore" default:"30s" min:"1s" max:"24h" doc:"A device that a policy left out for this long gets one task all the same, so that what is known of it stays true."`
	ClaimTTL        time.Duration     `yaml:"claim_ttl" default:"5m" min:"1s" doc:"How long, at least, a (tenant, id) is remembered in Redis to drop a second record of the same task; at most twice as long."`
	ShareNormal     float64           `yaml:"share_normal" default:"0.2" unit:"share of work" min:"0" max:"0.4" doc:"Share of the work that normal tasks have when high ones never end."`
	ShareLow        float64           `yaml:"share_low" default:"0.06" unit:"share of work" min:"0" max:"0.4" doc:"Share of the work that low tasks have when high and normal ones never end."`
	LevelBoost      time.Duration     `yaml:"age_level" default:"30s" doc:"What one level (0 to 9 within a priority) is worth: a task goes before those of a level higher that came this much later."`
	Tenants         map[string]string `yaml:"tenant_weights" doc:"Shares of tenants within a priority: a tenant of weight 2 gets twice the work of one of weight 1 while both have tasks waiting. Who is not named has 1."`
	Weights         map[string]string `yaml:"load_weights" live:"true" doc:"For load_formula: the weight of each figure (cpu, mem, io, latency, queue), or preset: one of balanced, compute, edge."`
	HashBy          string            `yaml:"hash_by" default:"session" enum:"session,tenant,client" doc:"For hash: what stays on one device. Without a session the task's id decides."`
	ParkRetry       time.Duration     `yaml:"park_for" default:"15s" min:"100ms" doc:"How long a task that nothing can run now is set aside in the log before it is looked at again."`
	RefreshInterval time.Duration     `yaml:"refresh" default:"1s" min:"50ms" doc:"How often heartbeats and learned rates are read from Redis."`
	DrainTimeout    time.Duration     `yaml:"drain_timeout" default:"10s" doc:"How long a stopping router waits for its last writes."`

	BatchCreditsPerSlot int `yaml:"merged_credit" default:"32" unit:"tasks" min:"1" max:"1024" doc:"Tasks that one slot counts for where requests are merged (embeddings, completions)."`
}
