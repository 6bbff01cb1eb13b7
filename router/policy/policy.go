package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Load is the exact state of one of a device's two credit pools.
type Load struct {
	Slots       int     // tasks that the device works on at the same time
	Limit       int     // credits: the slots, and the tasks that may be bound ahead
	Used        int     // credits in use, by all routers together
	Last        uint64  // number of the pick that last chose it; 0: never
	PolicyState float64 // for the policy to keep with the device; 0 when the policy is new
}

// Free is the number of credits left.
func (l *Load) Free() int { return max(0, l.Limit-l.Used) }

// Candidate is a device that may run a task: it serves the model, has the capability tags, sends
// heartbeats, is not draining, and its breaker lets requests through.
type Candidate struct {
	Device string // its id
	*Load
	Service  time.Duration // learned time of one task on one slot; 0: unknown
	CPU      float64       // 0 to 1, from the last heartbeat (up to 5 s old), like the next four
	Mem      float64
	IO       float64
	Latency  time.Duration // network time to the device
	Queue    int           // tasks queued inside the device; -1: unknown
	Weight   float64       // set by the operator; normally 1
	ProbeDue bool          // not measured for so long that Service may be wrong
}

// Request is what a policy may know about a task.
type Request struct {
	ID       string
	Tenant   string
	Session  string
	Client   string // network address of the sender, without the port
	Priority int    // 0 high, 1 normal, 2 low
	Level    int
	Ahead    int // tasks with the same demand that wait in front of it, in this round
}

// Snapshot is what a policy chooses from.
type Snapshot struct {
	Now             time.Time
	DispatchLatency time.Duration // from a pick to the start of the request
	Routers         int           // that share the tasks
	Picks           uint64        // made so far; see Load.Last
	Generation      uint64        // changes when anything but a Load changes
	Candidates      []Candidate   // sorted by device; a policy may change only their PolicyState
	Rand            *rand.Rand    // seeded by the owner of the policy
	Cache           any           // what the policy derived from this generation; nil in a new one
}

// Scored is a candidate with the score that the policy gave it; lower is better.
type Scored struct {
	Index int
	Score float64
}

// Choice is the answer of a policy.
type Choice struct {
	Index int  // of the candidate; Wait to leave the task in the router
	Defer bool // with Wait: a device is free, but a better one is worth waiting for

	// DeferWhileAheadBelow, with Defer: the answer stays the same for a task with fewer tasks
	// ahead than this. 0: unknown.
	DeferWhileAheadBelow int

	Top  [3]Scored // the best candidates that were looked at, best first
	Tops int       // how many of Top are set
	Why  string    // for the audit log; constant text, completes "because …"
}

// Wait as an index means no candidate.
const Wait = -1

// consider puts a candidate among the best three; of equal scores, the earlier one stays in front.
func (c *Choice) consider(index int, score float64) {
	at := c.Tops
	for at > 0 && score < c.Top[at-1].Score {
		at--
	}
	c.insert(at, Scored{index, score})
}

// insert puts a candidate at a place among the best three, and drops the one that has no room.
func (c *Choice) insert(at int, s Scored) {
	if at == len(c.Top) {
		return
	}
	c.Tops = min(c.Tops+1, len(c.Top))
	copy(c.Top[at+1:c.Tops], c.Top[at:c.Tops-1])
	c.Top[at] = s
}

// Policy picks a device for one task. One goroutine calls it. It must not block, must not keep the
// snapshot, and may return only a candidate with a free credit, or Wait.
type Policy interface {
	Name() string
	// BindsLate reports when the policy, as published, binds a task to a device: once the device
	// can soon start it (true), or as soon as the task arrives (false).
	BindsLate() bool
	// Unit of the scores: ms, tasks, share, load, or empty.
	Unit() string
	Pick(r *Request, s *Snapshot) Choice
}

// Ordered is implemented by a policy that wants tasks in an order other than by priority, tenant
// and level.
type Ordered interface {
	// ByArrival reports that tasks go strictly in the order of their submission.
	ByArrival() bool
}

// Config holds the settings of the policies that have any.
type Config struct {
	HashBy  string            // hash: what stays on one device: session, tenant or client
	Weights map[string]string // load_formula: the weight of each figure, or preset: its name
}

// registry makes each policy by its name.
var registry = map[string]func(Config) (Policy, error){
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

// Names lists the policies, sorted.
func Names() []string { return slices.Sorted(maps.Keys(registry)) }

// New returns the policy of that name. The error says which names there are, or which setting of
// the policy is wrong.
func New(name string, cfg Config) (Policy, error) {
	construct, ok := registry[name]
	if !ok {
		return nil, fmt.Errorf("unknown policy %q: use one of %s", name, strings.Join(Names(), ", "))
	}
	return construct(cfg)
}
