package router

import (
	"fmt"
	"time"
)

// Candidate is a device that may run a task: it serves the model, has the tags,
// sends heartbeats, is not draining, and its breaker lets requests through.
type Candidate struct {
	Device   string
	Slots    int           // requests it works on at the same time
	Limit    int           // tasks it may have: slots and what the hop hides
	Used     int           // tasks it has, as all routers together know
	Waiting  int           // tasks that this round has decided to keep back for it
	Service  time.Duration // learned time of one task on one slot; 0: unknown
	CPU      float64       // 0–1, from the last heartbeat, up to 5 s old
	Mem      float64
	IO       float64
	Latency  time.Duration // network time to the device, from the last heartbeat
	Weight   float64       // set by the operator; 1 is usual
	LastPick uint64        // number of the pick that last chose it, 0: never
}

// Free is the number of credits left.
func (c *Candidate) Free() int { return max(0, c.Limit-c.Used) }

// Choice is what a policy decides.
type Choice struct {
	Index int    // of the candidate; Wait when the task should wait
	For   int    // when waiting: the candidate that is worth waiting for, or Wait
	Why   string // the reason in figures, for the audit log
}

// Wait as an index means no candidate.
const Wait = -1

// Policy picks a device for one task. It is called by one goroutine, must not
// block and must not keep the candidates. It may return only a candidate with a
// free credit, or Wait.
type Policy interface {
	Name() string
	Pick(now time.Time, cs []Candidate) Choice
}

// NewPolicy returns the policy of that name.
func NewPolicy(name string, cfg Config) (Policy, error) {
	switch name {
	case "expected_finish":
		return &expectedFinish{hop: cfg.Hop}, nil
	case "round_robin":
		return &roundRobin{}, nil
	}
	return nil, fmt.Errorf("router.policy: %q is not a policy; use expected_finish or round_robin", name)
}
