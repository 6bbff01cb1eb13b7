// Package trail writes to the audit log what the API's handlers do not write themselves: what clients read, and
// which of their requests were refused.
//
// The first request of its kind in a minute becomes a row at once. Those that follow are counted, and become one
// more row when the minute is over, so that a client that polls, or tries the same again and again, costs two
// rows a minute. Readings of one sender with one operation are of one kind, and refusals if they are about the same
// thing, for the same reason. If the process dies, the count of the current minute is lost, but not the row that begins it.
package trail

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
)

const (
	minute  = time.Minute
	maxKeys = 5000 // kinds of requests in a minute; more are counted without their senders
	maxIDs  = 10   // that a row names
)

// Record writes an event. An error means that it may be missing in the log.
type Record func(ctx context.Context, e task.Event, detail map[string]any) error

// Trail counts accesses. It is safe for concurrent use.
type Trail struct {
	record Record

	mu     sync.Mutex
	counts map[kind]*count
}

// kind is what one row may stand for.
type kind struct {
	action                                   task.Action
	outcome                                  task.Outcome
	tenant, actor, host, operation, resource string
	status                                   int
	why                                      string // what a refusal was about, and why it was one; empty for a reading
}

// count is the accesses of one kind that have no row yet.
type count struct {
	first       task.Event // of the minute
	access      Access     // the same
	more        int
	from, until time.Time
	ids         []string
}

// New returns a trail that writes with record.
func New(record Record) *Trail { return &Trail{record: record, counts: map[kind]*count{}} }

func (a *Access) kind(e *task.Event) kind {
	host, _, err := net.SplitHostPort(e.SourceAddr)
	if err != nil {
		host = e.SourceAddr
	}
	k := kind{e.Action, e.Outcome, e.Tenant, e.ActorID, host, a.Operation, e.ResourceType, a.Status, ""}
	if e.Action != task.DataRead {
		k.why = strings.Join(append([]string{a.ID, a.Reason}, a.Fields...), "\n")
	}
	return k
}

// Answered records or counts an access, unless its handler has recorded it.
func (t *Trail) Answered(ctx context.Context, a Access) {
	e, ok := a.event()
	if !ok {
		return
	}
	now := clock.Now().UTC()
	e.Time = now
	k := a.kind(&e)
	t.mu.Lock()
	c, known := t.counts[k]
	if !known && len(t.counts) >= maxKeys {
		k.tenant, k.actor, k.host, k.why = task.DefaultTenant, "", "", ""
		e.Tenant, e.ActorID, e.SourceAddr, e.UserAgent = task.DefaultTenant, "many", "", ""
		a.Reason, a.Fields = "", nil
		c, known = t.counts[k]
	}
	if known {
		c.add(e.ResourceID, now)
		t.mu.Unlock()
		return
	}
	c = &count{first: e, access: a}
	t.counts[k] = c
	t.mu.Unlock()
	if t.record(ctx, e, a.detail()) == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c.add(e.ResourceID, now) // the minute's row says it
}

func (c *count) add(id string, now time.Time) {
	if c.more++; c.more == 1 {
		c.from = now
	}
	c.until = now
	if id != "" && len(c.ids) < maxIDs && !slices.Contains(c.ids, id) {
		c.ids = append(c.ids, id)
	}
}

func (a *Access) detail() map[string]any {
	d := map[string]any{"operation": a.Operation, "status": a.Status}
	if a.Reason != "" {
		d["reason"] = a.Reason
	}
	if len(a.Fields) > 0 {
		d["errors"] = a.Fields
	}
	return d
}

// Run writes what was counted every minute, until ctx ends. [Trail.Flush] writes the rest.
func (t *Trail) Run(ctx context.Context) {
	tick := time.NewTicker(minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.Flush(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// Flush writes what was counted, and starts counting from zero. What cannot be written is kept for the next time; it
// returns how many kinds that is.
func (t *Trail) Flush(ctx context.Context) (left int) {
	t.mu.Lock()
	counts := t.counts
	t.counts = make(map[kind]*count)
	t.mu.Unlock()
	down := false
	for k, c := range counts {
		if c.more == 0 {
			continue
		}
		if !down && t.record(ctx, c.event(), c.detail()) == nil {
			continue
		}
		down = true // the others would wait in vain, too
		left++
		t.keep(k, c)
	}
	return left
}

// keep counts again what could not be written.
func (t *Trail) keep(k kind, c *count) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, known := t.counts[k]
	if !known {
		t.counts[k] = c
		return
	}
	if now.more == 0 {
		now.until = c.until
	}
	now.more += c.more
	now.from = c.from
	for _, id := range c.ids {
		if len(now.ids) < maxIDs && !slices.Contains(now.ids, id) {
			now.ids = append(now.ids, id)
		}
	}
}

// event returns the row for what was counted.
func (c *count) event() task.Event {
	e := c.first
	e.Time, e.ResourceID, e.TraceID = c.until, "", ""
	if len(c.ids) == 1 {
		e.ResourceID = c.ids[0]
	}
	return e
}

func (c *count) detail() map[string]any {
	d := c.access.detail()
	d["requests"], d["from"], d["until"] = c.more, c.from, c.until
	if len(c.ids) > 1 {
		d["ids"] = c.ids
	}
	return d
}
