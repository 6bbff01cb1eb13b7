package router

import "time"

// Config is the settings of the router.
type Config struct {
	Policy       string        `yaml:"policy" default:"expected_finish" enum:"expected_finish,round_robin" doc:"How a device is chosen among those that may run a task and have a free credit."`
	WindowCount  int           `yaml:"window_count" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Tasks held in memory per tasks topic; the rest of the backlog stays in Kafka."`
	WindowBytes  int64         `yaml:"window_bytes" default:"64MiB" unit:"bytes" min:"1048576" doc:"Bytes of records held in memory per tasks topic."`
	RoundPicks   int           `yaml:"round_picks" default:"256" unit:"tasks" min:"1" max:"4096" doc:"Tasks assigned in one round, which is one round trip to Redis."`
	CreditsAhead float64       `yaml:"credits_ahead" default:"0.5" unit:"share of slots" min:"0" max:"8" doc:"Tasks that a device may have beyond its slots, so that it does not idle during the hop to it; at least one task."`
	MergedCredit int           `yaml:"merged_credit" default:"32" unit:"tasks" min:"1" max:"1024" doc:"Tasks that one slot counts for where requests are merged (embeddings, completions)."`
	Hop          time.Duration `yaml:"hop" default:"5ms" doc:"Time from an assignment to the start of its request; part of the expected finish."`
	ClaimTTL     time.Duration `yaml:"claim_ttl" default:"5m" min:"1s" doc:"How long, at least, a (tenant, id) is remembered in Redis to drop a second record of the same task; at most twice as long."`
	AgeNormal    time.Duration `yaml:"age_normal" default:"30s" doc:"A normal task goes before high tasks that were submitted this much later, so that it does not starve."`
	AgeLow       time.Duration `yaml:"age_low" default:"2m" doc:"A low task goes before high tasks that were submitted this much later."`
	AgeLevel     time.Duration `yaml:"age_level" default:"2s" doc:"What one level (0 to 9 within a priority) is worth."`
	ParkFor      time.Duration `yaml:"park_for" default:"15s" min:"100ms" doc:"How long a task that nothing can run now is set aside in the log before it is looked at again."`
	Refresh      time.Duration `yaml:"refresh" default:"1s" min:"50ms" doc:"How often heartbeats and learned rates are read from Redis."`
	DrainTimeout time.Duration `yaml:"drain_timeout" default:"10s" doc:"How long a stopping router waits for its last writes."`
}
