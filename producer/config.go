package producer

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// Config limits what the producer accepts. Zero fields mean their defaults.
type Config struct {
	MaxInput    int64         `yaml:"max_input" default:"1MiB" unit:"bytes" min:"1024" max:"4194304" doc:"Maximum size of a task's input."`
	MaxTasks    int           `yaml:"max_tasks" default:"1000" unit:"tasks" min:"1" max:"100000" doc:"Maximum number of tasks per submit."`
	MaxBody     int64         `yaml:"max_body" default:"64MiB" unit:"bytes" min:"1024" max:"1073741824" doc:"Maximum size of the body of a submit over HTTP."`
	MaxInFlight int64         `yaml:"max_in_flight" default:"128MiB" unit:"bytes" min:"1048576" max:"17179869184" doc:"Maximum size of tasks that were sent to Kafka and are not acknowledged. Further submits wait."`
	RecentTasks int           `yaml:"recent_tasks" default:"100000" unit:"tasks" min:"1" max:"10000000" doc:"Number of recently submitted tasks that each process remembers, to answer status requests before Postgres can."`
	RecentTTL   time.Duration `yaml:"recent_ttl" default:"1m" min:"0s" max:"1h" doc:"How long Redis keeps a recently submitted task for the other processes. 0s: each process only knows its own."`
	JobTTL      time.Duration `yaml:"job_ttl" default:"24h" min:"1m" max:"8760h" doc:"How long Redis keeps which file a job's name belongs to. Postgres keeps it for good, but learns of it later: the time by which the stage audit may lag behind."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// Limits returns the bounds of one task.
func (c Config) Limits() task.Limits { return task.Limits{MaxInput: int(c.withDefaults().MaxInput)} }
