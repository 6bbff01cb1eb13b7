package learn

import (
	"maps"
	"sync"

	"github.com/batchyard/batchyard/device"
)

// Contexts learns how many tokens a device takes at once, by model, from what it says when it refuses a prompt. It may be
// used by many goroutines.
type Contexts struct {
	mu sync.Mutex
	by map[string]int
}

// Said records that the device named its limit.
func (c *Contexts) Said(model string, tokens int) {
	if tokens < 1 || tokens > device.MaxContext {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	if _, ok := c.by[model]; ok || len(c.by) < device.MaxBatches {
		c.by[model] = tokens
	}
}

// Worked records that the device answered a prompt of so many tokens: if that is more than it said, it says something
// else by now.
func (c *Contexts) Worked(model string, tokens int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, ok := c.by[model]; ok && tokens > n {
		delete(c.by, model)
	}
}

// Seed takes over what an earlier owner of the device learned.
func (c *Contexts) Seed(tokens map[string]int) {
	for model, n := range tokens {
		c.Said(model, n)
	}
}

// Known returns the limits, by model.
func (c *Contexts) Known() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.by)
}
