package producer

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// Config limits what the producer accepts. Zero fields mean their defaults.
type Config struct {
	MaxInput    int64         `yaml:"max_input" default:"1MiB" unit:"bytes" min:"1024" max:"4194304" doc:"The largest input that a task may have."`
	MaxTasks    int           `yaml:"max_tasks" default:"1000" unit:"tasks" min:"1" max:"100000" doc:"How many tasks one submit may hold."`
	MaxBody     int64         `yaml:"max_body" default:"64MiB" unit:"bytes" min:"1024" max:"1073741824" doc:"The largest body of one submit over HTTP."`
	MaxInFlight int64         `yaml:"max_in_flight" default:"128MiB" unit:"bytes" min:"1048576" max:"17179869184" doc:"Bytes of tasks that may be on their way to Kafka; submits beyond that wait."`
	RecentTasks int           `yaml:"recent_tasks" default:"100000" unit:"tasks" min:"1" max:"10000000" doc:"How many of the tasks submitted last each process remembers, to answer for them before Postgres can."`
	RecentTTL   time.Duration `yaml:"recent_ttl" default:"1m" min:"0s" max:"1h" doc:"How long Redis remembers a submitted task for the other processes; 0s keeps this in each process."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// Limits returns the bounds of one task.
func (c Config) Limits() task.Limits { return task.Limits{MaxInput: int(c.withDefaults().MaxInput)} }
