// Package rollup counts what the recorder writes, for questions about everything, which would
// otherwise read every row. A chunk's counts are added to the tables rollup_… in the transaction
// that writes its rows, so they agree exactly: batchyard_rebuild_rollups, which counts the rows
// themselves, gives the same, and a test compares the two.
package rollup

import (
	"bytes"
	"encoding/json"
	"math"
	"math/bits"
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Counts counts the events and results of a chunk. The zero value is empty. It costs a map lookup
// per event, and memory only for keys that the chunk did not have yet. It is used by one goroutine.
type Counts struct {
	usage       sums[usageKey, usageSums]
	latency     sums[latencyKey, timeSums]
	attempts    sums[attemptKey, attemptSums]
	batches     sums[batchKey, batchSums]
	submissions sums[submissionKey, submissionSums]
}

// sums holds a value for each key, in the order in which the keys were first used.
type sums[K comparable, V any] struct {
	index map[K]int32
	keys  []K
	vals  []V
}

func (s *sums[K, V]) of(k K) *V {
	i, ok := s.index[k]
	if !ok {
		if s.index == nil {
			s.index = map[K]int32{}
		}
		i = int32(len(s.keys)) //nolint:gosec // fewer than a chunk has rows
		s.index[k] = i
		var none V
		s.keys, s.vals = append(s.keys, k), append(s.vals, none)
	}
	return &s.vals[i]
}

// keepKeys is the number of keys up to which a map is kept for the next chunk: clearing a map costs
// as much as it ever held.
const keepKeys = 4096

func (s *sums[K, V]) reset() {
	if len(s.keys) > keepKeys {
		*s = sums[K, V]{}
		return
	}
	clear(s.index)
	clear(s.keys) // their strings belong to records that are done
	s.keys, s.vals = s.keys[:0], s.vals[:0]
}

// The keys and their sums. Hours and days count from 1970.
type (
	usageKey struct {
		hour                           int32
		tenant, model, endpoint, state string
	}
	usageSums struct{ tasks, attempts, in, out int64 }

	latencyKey struct {
		hour   int32
		bucket int16
		stage  string
		model  string
	}
	timeSums struct{ n, us int64 }

	attemptKey struct {
		hour                         int32
		device, model, action, cause string
	}

	batchKey struct {
		hour, size    int32
		model, reason string
	}
	attemptSums struct{ n, requests, us int64 }

	batchSums struct{ tasks, bytes int64 }

	submissionKey struct {
		day                          int32 // an hour may have as many senders as tasks
		tenant, actor, source, agent string
	}
	submissionSums struct {
		tasks, bytes int64
		first, last  time.Time
	}
)

// Stages whose time is measured; the view stage_latency documents them.
const (
	stageQueue    = "queue"
	stageBatch    = "batch"
	stageDispatch = "dispatch"
	stageAttempt  = "attempt"
	stageFailed   = "failed_attempt"
	stageCallback = "callback"
	stageTotal    = "total"
)

func hourOf(t time.Time) int32 { return int32(t.Unix() / 3600) } //nolint:gosec // times are within 2000 and 2200

// bucketOf returns the histogram bucket of a time in microseconds, as batchyard_bucket in Postgres
// does: eight buckets for each doubling.
func bucketOf(us int64) int16 {
	if us < 8 {
		return int16(max(us, 0)) //nolint:gosec // at most 7
	}
	e := bits.Len64(uint64(us)) - 1          //nolint:gosec // it is positive
	return int16((e-2)*8 + int(us>>(e-3))&7) //nolint:gosec // at most 487
}

// Absorb takes over the counts of another, which is empty afterwards.
func (r *Counts) Absorb(other *Counts) {
	absorb(&r.usage, &other.usage, func(to, v *usageSums) {
		to.tasks, to.attempts, to.in, to.out = to.tasks+v.tasks, to.attempts+v.attempts, to.in+v.in, to.out+v.out
	})
	absorb(&r.latency, &other.latency, func(to, v *timeSums) { to.n, to.us = to.n+v.n, to.us+v.us })
	absorb(&r.attempts, &other.attempts, func(to, v *attemptSums) {
		to.n, to.requests, to.us = to.n+v.n, to.requests+v.requests, to.us+v.us
	})
	absorb(&r.batches, &other.batches, func(to, v *batchSums) { to.tasks, to.bytes = to.tasks+v.tasks, to.bytes+v.bytes })
	absorb(&r.submissions, &other.submissions, func(to, v *submissionSums) {
		if to.tasks == 0 || v.first.Before(to.first) {
			to.first = v.first
		}
		if to.tasks == 0 || v.last.After(to.last) {
			to.last = v.last
		}
		to.tasks, to.bytes = to.tasks+v.tasks, to.bytes+v.bytes
	})
	other.Reset()
}

func absorb[K comparable, V any](to, from *sums[K, V], add func(to, v *V)) {
	for i, k := range from.keys {
		add(to.of(k), &from.vals[i])
	}
}

// Reset empties the counts and keeps their memory.
func (r *Counts) Reset() {
	r.usage.reset()
	r.latency.reset()
	r.attempts.reset()
	r.batches.reset()
	r.submissions.reset()
}

// Add counts an event that becomes an audit row.
func (r *Counts) Add(e *task.Event) {
	switch e.Action {
	case task.TaskAccepted:
		r.accepted(e)
	case task.TaskAssigned:
		r.took(e, stageQueue)
	case task.BatchClosed:
		r.took(e, stageBatch)
		r.batched(e)
	case task.AttemptSucceeded:
		r.took(e, stageAttempt)
		r.tried(e)
	case task.AttemptFailed:
		r.took(e, stageFailed)
		r.tried(e)
	case task.TaskRequeued, task.TaskDegraded:
		r.tried(e)
	case task.CallbackSent:
		r.took(e, stageCallback)
	default:
	}
}

// AddResult counts a result that is the first of its task.
func (r *Counts) AddResult(res *task.Result) {
	hour := hourOf(res.FinishedAt)
	v := r.usage.of(usageKey{hour, res.Tenant, res.Model, res.Endpoint, string(res.State)})
	v.tasks++
	v.attempts += int64(res.Attempt())
	v.in += res.Usage.InputTokens
	v.out += res.Usage.OutputTokens
	if !res.AssignedAt.IsZero() && !res.StartedAt.IsZero() && !res.StartedAt.Before(res.AssignedAt) {
		r.time(hour, stageDispatch, res.Model, res.StartedAt.Sub(res.AssignedAt))
	}
	if res.State == task.Success && !res.SubmittedAt.IsZero() && !res.FinishedAt.Before(res.SubmittedAt) {
		r.time(hour, stageTotal, res.Model, res.FinishedAt.Sub(res.SubmittedAt))
	}
}

// took counts how long a stage took; less than a microsecond counts, too.
func (r *Counts) took(e *task.Event, stage string) {
	r.time(hourOf(e.Time), stage, e.Model, max(0, e.Duration))
}

func (r *Counts) time(hour int32, stage, model string, d time.Duration) {
	us := d.Microseconds()
	v := r.latency.of(latencyKey{hour, bucketOf(us), stage, model})
	v.n++
	v.us += min(us, math.MaxInt64-v.us)
}

func (r *Counts) tried(e *task.Event) {
	cause := string(e.ErrorClass)
	if cause == "" && e.Action == task.TaskRequeued {
		var note struct{ Reason string }
		if json.Unmarshal(e.Detail, &note) == nil {
			cause = pg.Truncate(note.Reason, maxCause)
		}
	}
	v := r.attempts.of(attemptKey{hourOf(e.Time), e.DeviceID, e.Model, string(e.Action), cause})
	v.n++
	if (e.Action == task.AttemptSucceeded || e.Action == task.AttemptFailed) && !sharesRequest(e.Detail) {
		v.requests++
		v.us += min(max(0, e.Duration).Microseconds(), math.MaxInt64-v.us)
	}
}

// sharesRequest reports whether the request of an attempt is counted with another task: a request that asked
// for several tasks is counted with its first one.
func sharesRequest(detail []byte) bool {
	if !bytes.Contains(detail, []byte(`"request_index"`)) {
		return false
	}
	var note struct {
		Index int `json:"request_index"`
	}
	return json.Unmarshal(detail, &note) == nil && note.Index > 0
}

func (r *Counts) batched(e *task.Event) {
	reason, size, bytes, ok := readBatch(e.Detail)
	if !ok {
		return
	}
	v := r.batches.of(batchKey{hourOf(e.Time), size, e.Model, reason})
	v.tasks++
	v.bytes += bytes
}

// maxCause bounds the reason of a requeue or a batch as a key, in characters.
const maxCause = 64

// Bounds of the names of a sender as a key, in characters: an index entry has at most 2.7 kB.
const (
	maxKeyActor  = 128
	maxKeySource = 100
	maxKeyAgent  = 256
)

func (r *Counts) accepted(e *task.Event) {
	v := r.submissions.of(submissionKey{hourOf(e.Time) / 24, e.Tenant, pg.Truncate(e.ActorID, maxKeyActor), pg.Truncate(sourceOf(e.SourceAddr), maxKeySource), pg.Truncate(e.UserAgent, maxKeyAgent)})
	if v.tasks == 0 || e.Time.Before(v.first) {
		v.first = e.Time
	}
	if v.tasks == 0 || e.Time.After(v.last) {
		v.last = e.Time
	}
	v.tasks++
	v.bytes += e.InputSize
}

// sourceOf leaves out of an address what differs for every task: the port, or the position in the
// topic.
func sourceOf(addr string) string {
	sep := strings.LastIndexByte(addr, ':')
	if strings.HasPrefix(addr, "kafka:") {
		sep = strings.IndexByte(addr, '/')
	}
	if sep < 0 {
		return addr
	}
	return addr[:sep]
}

// readBatch reads the detail of batch.closed. The batcher writes it with sorted keys, which
// quickBatch reads without allocating; anything else goes through encoding/json.
func readBatch(detail []byte) (reason string, size int32, bytes int64, ok bool) {
	if reason, size, bytes, ok = quickBatch(detail); ok {
		return reason, size, bytes, true
	}
	var note struct {
		Reason     string
		Tasks      int32
		Bytes      int64
		Unreadable *int64 `json:"unreadable_bytes"`
	}
	if len(detail) > 0 && json.Unmarshal(detail, &note) != nil {
		return "", 0, 0, false
	}
	return pg.Truncate(note.Reason, maxCause), note.Tasks, note.Bytes, note.Unreadable == nil
}

func quickBatch(b []byte) (reason string, size int32, bytes int64, ok bool) {
	if bytes, b, ok = number(b, `{"bytes":`); !ok {
		return "", 0, 0, false
	}
	const second, third = `,"reason":"`, `","tasks":`
	if len(b) < len(second) || string(b[:len(second)]) != second {
		return "", 0, 0, false
	}
	b = b[len(second):]
	for _, reason = range [...]string{"idle", "count", "wait", "bytes", "drain"} {
		if len(b) <= len(reason) || string(b[:len(reason)]) != reason {
			continue
		}
		n, rest, ok := number(b[len(reason):], third)
		return reason, int32(n), bytes, ok && n < 1<<31 && string(rest) == "}" //nolint:gosec // the bound is checked
	}
	return "", 0, 0, false
}

// number reads the number after a prefix, and returns what follows it.
func number(b []byte, prefix string) (n int64, rest []byte, ok bool) {
	if len(b) < len(prefix) || string(b[:len(prefix)]) != prefix {
		return 0, nil, false
	}
	b = b[len(prefix):]
	i := 0
	for i < len(b) && i < 18 && b[i] >= '0' && b[i] <= '9' {
		n = 10*n + int64(b[i]-'0')
		i++
	}
	return n, b[i:], i > 0
}
