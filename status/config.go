package status

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
)

// Config bounds the requests that wait for a task to finish, and lookups of tasks. Zero fields stand for
// their defaults.
type Config struct {
	MaxWaiters   int           `yaml:"max_waiters" default:"20000" unit:"requests" min:"1" max:"1000000" doc:"How many requests may wait for a task to finish at the same time."`
	PollInterval time.Duration `yaml:"poll_interval" default:"10s" min:"5s" max:"10m" doc:"How often the tasks that requests wait for are queried, in case a notification from Postgres was lost."`

	LookupTimeout time.Duration `yaml:"lookup_timeout" default:"1s" min:"10ms" max:"1m" doc:"How long the API and the routers wait for Postgres to say whether a task has been answered before they go on without it."`
	LookupRetry   time.Duration `yaml:"lookup_retry" default:"2s" min:"10ms" max:"10m" doc:"How long they do not ask again after Postgres did not answer."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}
