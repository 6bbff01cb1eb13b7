package router

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Load is what the routers know exactly of one pool of a device's credits, now.
type Load struct {
	Slots int     // tasks it works on at the same time
	Limit int     // tasks it may have: slots, and those bound ahead
	Used  int     // tasks it has, as all routers together know
	Last  uint64  // number of the pick that last chose it, 0: never
	Note  float64 // for the policy to keep a figure with the device; 0 at first
}

// Free is the number of credits left.
func (l *Load) Free() int { return max(0, l.Limit-l.Used) }

// Candidate is a device that may run a task: it serves the model, has the tags,
// sends heartbeats, is not draining, and is not let alone for failing.
type Candidate struct {
	Device string
	*Load
	Service time.Duration // learned time of one task on one slot; 0: unknown
	CPU     float64       // 0–1, from the last heartbeat, up to 5 s old, like the next four
	Mem     float64
	IO      float64
	Latency time.Duration // network time to the device
	Queue   int           // waiting inside the device; -1 unknown
	Weight  float64       // set by the operator; 1 is usual
	Explore bool          // nothing was heard of it for long: what is known may be wrong
}

// Request is what a policy may know of a task.
type Request struct {
	ID      string
	Tenant  string
	Session string
	Client  string // network address of who sent it, without the port
	Band    int    // 0 high, 1 normal, 2 low
	Level   int
	Ahead   int // tasks of its class that go before it and wait, in this round
}

// Field is the devices among which a policy chooses, and what is known of all.
type Field struct {
	Now     time.Time
	Hop     time.Duration // from a pick to the start of its request
	Routers int           // that work at the same tasks
	Picks   uint64        // made so far, for Load.Last
	Gen     uint64        // another one when anything but a Load has changed
	Cands   []Candidate   // sorted by device; only their Note may be changed
	Rand    *rand.Rand    // seeded by who runs the policy
	Memo    any           // what the policy worked out for this Gen; nil when it is new
}

// Scored is a candidate with the score that a policy gave it; lower is better.
type Scored struct {
	Index int
	Score float64
}

// Choice is what a policy decides.
type Choice struct {
	Index int       // of the candidate; Wait when the task should wait
	Held  bool      // when waiting: a device could take it, a better one is worth the wait
	Until int       // when held: with fewer tasks ahead than this the choice is the same; 0: not known
	Top   [3]Scored // the best that were looked at, best first
	Tops  int       // how many of Top are set
	Note  string    // in words, for the audit log; constant text, figures are in Top
}

// Wait as an index means no candidate.
const Wait = -1

// note puts a candidate among the best three.
func (c *Choice) note(index int, score float64) {
	at := c.Tops
	for at > 0 && score < c.Top[at-1].Score {
		at--
	}
	if at == len(c.Top) {
		return
	}
	if c.Tops < len(c.Top) {
		c.Tops++
	}
	copy(c.Top[at+1:c.Tops], c.Top[at:c.Tops-1])
	c.Top[at] = Scored{index, score}
}

// Policy picks a device for one task. It is called by one goroutine, must not
// block and must not keep the field. It may return only a candidate with a
// free credit, or Wait.
type Policy interface {
	Name() string
	// Late says when the policy, as published, binds a task to a device: when the
	// device can soon start it (true), or when the task comes (false).
	Late() bool
	// Unit of the scores: ms, tasks, share, or empty.
	Unit() string
	Pick(r *Request, f *Field) Choice
}

// policies makes each policy by its name.
var policies = map[string]func(Config) (Policy, error){
	"expected_finish":      func(Config) (Policy, error) { return &expectedFinish{}, nil },
	"fifo":                 func(Config) (Policy, error) { return &fifo{}, nil },
	"hash":                 newHash,
	"least_connections":    func(Config) (Policy, error) { return &leastConnections{}, nil },
	"load_formula":         newLoadFormula,
	"power_of_two":         func(Config) (Policy, error) { return &powerOfTwo{}, nil },
	"prequal":              func(Config) (Policy, error) { return &prequal{}, nil },
	"priority":             func(Config) (Policy, error) { return &priority{}, nil },
	"round_robin":          func(Config) (Policy, error) { return &roundRobin{}, nil },
	"weighted_random":      func(Config) (Policy, error) { return &weightedRandom{}, nil },
	"weighted_round_robin": func(Config) (Policy, error) { return &weightedRoundRobin{}, nil },
}

// PolicyNames lists the policies.
func PolicyNames() []string {
	names := make([]string, 0, len(policies))
	for n := range policies {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// NewPolicy returns the policy of that name.
func NewPolicy(name string, cfg Config) (Policy, error) {
	make, ok := policies[name]
	if !ok {
		return nil, fmt.Errorf("router.policy: %q is not a policy; use one of %s", name, strings.Join(PolicyNames(), ", "))
	}
	return make(cfg)
}
