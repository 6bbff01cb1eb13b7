package batcher

import (
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Config configures the batcher.
type Config struct {
	Batched      Thresholds    `yaml:"batched" doc:"Limits of a batch at batched endpoints (embeddings, completions), where one request carries the whole batch."`
	Single       Single        `yaml:"single" doc:"Limits of a batch at single endpoints (chat, responses, moderations), where each task is a request of its own and a batch only groups records."`
	Rules        []Rule        `yaml:"rules" live:"true" doc:"Other limits for an endpoint, a model, or both. The first rule that matches applies."`
	MaxInFlight  int           `yaml:"max_in_flight" default:"4096" unit:"records" min:"16" doc:"Maximum number of assignment records held in memory."`
	MaxBytes     int64         `yaml:"max_bytes" default:"128MiB" unit:"bytes" min:"1048576" doc:"Maximum size of the assignments held in memory."`
	DrainTimeout time.Duration `yaml:"drain_timeout" default:"10s" doc:"How long a stopping batcher waits for its last writes."`
}

// Thresholds say when a batch for a batched endpoint closes.
type Thresholds struct {
	MaxCount  int           `yaml:"max_count" live:"true" default:"100" unit:"tasks" min:"1" max:"4096" doc:"A batch closes when it has this many tasks."`
	MaxBytes  int64         `yaml:"max_bytes" live:"true" default:"4MiB" unit:"bytes" min:"1024" max:"12582912" doc:"A batch closes when its inputs have this size."`
	MaxTokens int           `yaml:"max_tokens" live:"true" default:"250000" unit:"tokens" min:"1" max:"4194304" doc:"A batch closes when its inputs have about this many tokens, at four bytes a token."`
	MaxWait   time.Duration `yaml:"max_wait" live:"true" default:"50ms" max:"10m" doc:"A batch closes when its oldest task has waited this long, even if the device is busy."`
}

// Single is Thresholds with the defaults for requests that go side by side.
type Single struct {
	MaxCount  int           `yaml:"max_count" live:"true" default:"32" unit:"tasks" min:"1" max:"4096" doc:"A batch closes when it has this many tasks."`
	MaxBytes  int64         `yaml:"max_bytes" live:"true" default:"4MiB" unit:"bytes" min:"1024" max:"12582912" doc:"A batch closes when its inputs have this size."`
	MaxTokens int           `yaml:"max_tokens" live:"true" default:"4194304" unit:"tokens" min:"1" max:"4194304" doc:"A batch closes when its inputs have about this many tokens, at four bytes a token."`
	MaxWait   time.Duration `yaml:"max_wait" live:"true" default:"5ms" max:"10m" doc:"A batch closes when its oldest task has waited this long, even if the device is busy."`
}

// Rule is thresholds for the tasks of an endpoint, a model, or both.
type Rule struct {
	Endpoint  string        `yaml:"endpoint" doc:"Path of the endpoint. Empty: all."`
	Model     string        `yaml:"model" doc:"Name of the model. Empty: all."`
	MaxCount  int           `yaml:"max_count" default:"100" unit:"tasks" min:"1" max:"4096" doc:"As above."`
	MaxBytes  int64         `yaml:"max_bytes" default:"4MiB" unit:"bytes" min:"1024" max:"12582912" doc:"As above."`
	MaxTokens int           `yaml:"max_tokens" default:"250000" unit:"tokens" min:"1" max:"4194304" doc:"As above."`
	MaxWait   time.Duration `yaml:"max_wait" default:"10s" max:"10m" doc:"As above."`
}

// For returns the thresholds of an endpoint and model: those of the first rule that matches, else
// the defaults.
func (c *Config) For(endpoint, model string) Thresholds {
	i := slices.IndexFunc(c.Rules, func(r Rule) bool {
		return (r.Endpoint == "" || r.Endpoint == endpoint) && (r.Model == "" || strings.EqualFold(r.Model, model))
	})
	if i >= 0 {
		r := c.Rules[i]
		return Thresholds{r.MaxCount, r.MaxBytes, r.MaxTokens, r.MaxWait}
	}
	return c.defaults(endpoint)
}

// defaults returns the thresholds of an endpoint without a rule.
func (c *Config) defaults(endpoint string) Thresholds {
	if task.Batched(endpoint) {
		return c.Batched
	}
	return Thresholds(c.Single)
}

// drainThresholds returns the thresholds of batches that open while the batcher stops: they do
// not wait.
func (c *Config) drainThresholds(endpoint string) Thresholds {
	t := c.defaults(endpoint)
	t.MaxWait = 0
	return t
}

// tokensOf estimates the tokens of an input of so many bytes.
func tokensOf(bytes int64) int64 { return (bytes + 3) / 4 }

// Reload makes batches that open from now on close at the thresholds of the configuration. The rest of it
// stays as it was.
func (b *Batcher) Reload(next Config) {
	now := b.cfg
	now.Batched, now.Single, now.Rules = next.Batched, next.Single, next.Rules
	b.limits.Store(&now)
}
