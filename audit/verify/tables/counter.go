package tables

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/maphash"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/internal/pg"
)

// Counter compares rollups with the rows that they count, without keeping a count for each key: it adds up
// the counts times a random number for each key, which is a hash with a random seed. Two sets of counts that differ
// have the same total only by chance, 1 in 2⁶⁴. Rows of the log and results add to the totals of their days and hours,
// and those of rollups subtract; what is left is not 0 where they differ. It is used by one goroutine.
type Counter struct {
	seed maphash.Seed
	days [rollupCount]map[int64]*dayTotal
	last [rollupCount]struct { // most rows are of the same day as the one before
		day int64
		of  *dayTotal
	}
	from    int64               // first day that is compared
	older   bool                // rollups have days before
	recent  int64               // first day whose hours are compared
	senders map[uint64]*moments // by day and key of rollup_submissions
	ends    map[int64]*dayOfEnds
	before  int64 // ends at this time or later are not counted
	key     []byte
	absurd  []string // rows of rollups that no recorder writes
}

// The rollups, in the order of [rollups].
const (
	countsUsage = iota
	countsLatency
	countsAttempts
	countsBatches
	countsSubmissions
	rollupCount
)

// dayTotal is what is left of a day.
type dayTotal struct {
	all   totals
	hours []hourTotal // 24; nil if hours are not compared
	late  bool        // the rollup has hours of a day whose hours are not compared
}

type hourTotal struct {
	totals
	kept bool // the rollup has rows of the hour
}

type totals [maxSums]total

// maxSums is the number of sums that a rollup has at most.
const maxSums = 4

// total is a sum of products, in two's complement.
type total struct{ hi, lo uint64 }

// add adds n times a coefficient.
func (t *total) add(coefficient uint64, n int64) {
	abs := uint64(n) //nolint:gosec // two's complement
	if n < 0 {
		abs = -abs
	}
	hi, lo := bits.Mul64(coefficient, abs)
	var carry uint64
	if n < 0 {
		t.lo, carry = bits.Sub64(t.lo, lo, 0)
		t.hi, _ = bits.Sub64(t.hi, hi, carry)
		return
	}
	t.lo, carry = bits.Add64(t.lo, lo, 0)
	t.hi, _ = bits.Add64(t.hi, hi, carry)
}

func (t *totals) absorb(other *totals) {
	for i := range t {
		var carry uint64
		t[i].lo, carry = bits.Add64(t[i].lo, other[i].lo, 0)
		t[i].hi, _ = bits.Add64(t[i].hi, other[i].hi, carry)
	}
}

// moments are when a sender submitted first and last, according to the log and to the rollup.
type moments struct{ first, last, keptFirst, keptLast int64 }

const (
	dayMicros  = int64(24 * time.Hour / time.Microsecond)
	hourMicros = int64(time.Hour / time.Microsecond)
	keptHours  = 4 // days whose hours are compared; older ones are deleted
)

// Counter returns an empty counter, whose counts can be absorbed.
func (l *Log) Counter() *Counter {
	c := &Counter{seed: l.seed, senders: map[uint64]*moments{}, ends: map[int64]*dayOfEnds{}, from: math.MinInt64, before: l.recent.UnixMicro(), recent: l.now.UnixMicro()/dayMicros - keptHours}
	if !l.complete.IsZero() {
		c.from = floorDiv(l.complete.UnixMicro()+dayMicros-1, dayMicros)
	}
	for i := range c.days {
		c.days[i] = map[int64]*dayTotal{}
	}
	return c
}

// Absorb adds what a counter counted, which must not be used afterwards.
func (l *Log) Absorb(c *Counter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	to := l.counted
	to.older = to.older || c.older
	to.absurd = append(to.absurd, c.absurd[:min(len(c.absurd), most-min(most, len(to.absurd)))]...)
	for i := range c.days {
		for day, d := range c.days[i] {
			into := to.of(i, day)
			into.all.absorb(&d.all)
			into.late = into.late || d.late
			for h := range d.hours {
				into.hours[h].absorb(&d.hours[h].totals)
				into.hours[h].kept = into.hours[h].kept || d.hours[h].kept
			}
		}
	}
	for day, d := range c.ends {
		into := to.ends[day]
		if into == nil {
			to.ends[day] = d
			continue
		}
		for i := range d {
			into[i] += d[i]
		}
	}
	for k, m := range c.senders {
		have := to.senders[k]
		if have == nil {
			to.senders[k] = m
			continue
		}
		have.first, have.last = min(have.first, m.first), max(have.last, m.last)
		have.keptFirst, have.keptLast = min(have.keptFirst, m.keptFirst), max(have.keptLast, m.keptLast)
	}
}

func (c *Counter) of(rollup int, day int64) *dayTotal {
	if l := &c.last[rollup]; l.of != nil && l.day == day {
		return l.of
	}
	d := c.days[rollup][day]
	if d == nil {
		d = &dayTotal{}
		if day >= c.recent {
			d.hours = make([]hourTotal, 24)
		}
		c.days[rollup][day] = d
	}
	c.last[rollup].day, c.last[rollup].of = day, d
	return d
}

// begin begins a key.
func (c *Counter) begin() { c.key = c.key[:0] }

// text adds a text to the key; Postgres has no zero byte in one.
func (c *Counter) text(b []byte) { c.key = append(append(c.key, b...), 0) }

func (c *Counter) number(n int64) { c.key = strconv.AppendInt(c.key, n, 36); c.key = append(c.key, 0) }

// add counts at a time, in microseconds as Postgres counts.
func (c *Counter) add(rollup int, at int64, sums ...int64) {
	us := at + pg.Epoch
	day := floorDiv(us, dayMicros)
	if day < c.from {
		return
	}
	d := c.of(rollup, day)
	coefficient := maphash.Bytes(c.seed, c.key)
	for i, n := range sums {
		d.all[i].add(coefficient, n)
	}
	if d.hours != nil && rollup != countsSubmissions {
		h := &d.hours[(us-day*dayMicros)/hourMicros]
		for i, n := range sums {
			h.totals[i].add(coefficient, n)
		}
	}
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Indexes into [audit.RowColumns] that only rollups need.
const (
	colActor, colSource, colAgent, colClass  = 4, 5, 6, 11
	colJob, colDevice, colDuration, colModel = 13, 15, 18, 19
	colInputBytes                            = 23
)

// Row counts a row of the log.
func (c *Counter) Row(r *copyrows.Row) {
	switch string(r.Field(audit.ColAction)) {
	case "task.assigned":
		c.took(r, "queue")
	case "batch.closed":
		c.took(r, "batch")
		c.batch(r)
	case "attempt.succeeded":
		c.took(r, "attempt")
		c.tried(r, true)
	case "attempt.failed":
		c.took(r, "failed_attempt")
		c.tried(r, true)
	case "task.requeued", "task.degraded":
		c.tried(r, false)
	case "callback.delivered":
		c.took(r, "callback")
	case "task.accepted":
		c.accepted(r)
	case "task.succeeded":
		c.endRow(r, "SUCCESS")
	case "task.failed":
		c.endRow(r, "FAILED")
	case "task.cancelled":
		c.endRow(r, "CANCELLED")
	case "task.expired":
		c.endRow(r, "EXPIRED")
	case "result.duplicate":
		c.secondResult(r)
	}
}

// micros returns the duration of a row in microseconds, as batchyard_rebuild_rollups computes it.
func micros(r *copyrows.Row) int64 {
	f := r.Field(colDuration)
	if len(f) != 8 {
		return 0
	}
	ns := math.RoundToEven(math.Float64frombits(binary.BigEndian.Uint64(f)) * 1e6)
	if !(ns > 0 && ns < math.MaxInt64) {
		return 0
	}
	return int64(ns) / 1000
}

func (c *Counter) took(r *copyrows.Row, stage string) {
	c.latency(r.Int8(audit.ColTime), stage, r.Field(colModel), micros(r))
}

func (c *Counter) latency(at int64, stage string, model []byte, us int64) {
	c.begin()
	c.key = append(append(c.key, stage...), 0)
	c.text(model)
	c.number(bucket(us))
	c.add(countsLatency, at, 1, us)
}

// bucket is batchyard_bucket.
func bucket(us int64) int64 {
	if us < 8 {
		return max(us, 0)
	}
	e := bits.Len64(uint64(us)) - 1 //nolint:gosec // it is positive
	return int64(e-2)*8 + us>>(e-3)&7
}

func (c *Counter) tried(r *copyrows.Row, attempt bool) { //nolint:revive // what the row is
	detail, cause := r.Field(audit.ColDetail), r.Field(colClass)
	if cause == nil && string(r.Field(audit.ColAction)) == "task.requeued" {
		cause = left(textOf(detail, "reason"), 64)
	}
	c.begin()
	c.text(r.Field(colDevice))
	c.text(r.Field(colModel))
	c.text(r.Field(audit.ColAction))
	c.text(cause)
	var requests, us int64
	if attempt && (!bytes.Contains(detail, []byte(`"request_index"`)) || string(textOf(detail, "request_index")) == "0") {
		requests, us = 1, micros(r)
	}
	c.add(countsAttempts, r.Int8(audit.ColTime), 1, requests, us)
}

func (c *Counter) batch(r *copyrows.Row) {
	detail := r.Field(audit.ColDetail)
	if bytes.Contains(detail, []byte(`"unreadable_bytes"`)) && textOf(detail, "unreadable_bytes") != nil {
		return
	}
	size, _ := strconv.ParseInt(string(textOf(detail, "tasks")), 10, 64)
	n, _ := strconv.ParseInt(string(textOf(detail, "bytes")), 10, 64)
	c.begin()
	c.text(r.Field(colModel))
	c.text(left(textOf(detail, "reason"), 64))
	c.number(size)
	c.add(countsBatches, r.Int8(audit.ColTime), 1, n)
}

func (c *Counter) accepted(r *copyrows.Row) {
	c.begin()
	c.text(r.Field(audit.ColTenant))
	c.text(left(r.Field(colActor), 128))
	c.text(left(source(r.Field(colSource)), 100))
	c.text(left(r.Field(colAgent), 256))
	at := r.Int8(audit.ColTime)
	c.add(countsSubmissions, at, 1, r.Int8(colInputBytes))
	day := floorDiv(at+pg.Epoch, dayMicros)
	if day < c.from {
		return
	}
	m := c.moments(day)
	m.first, m.last = min(m.first, at), max(m.last, at)
}

// moments returns those of the key on a day.
func (c *Counter) moments(day int64) *moments {
	c.number(day)
	k := maphash.Bytes(c.seed, c.key)
	m := c.senders[k]
	if m == nil {
		m = &moments{math.MaxInt64, math.MinInt64, math.MaxInt64, math.MinInt64}
		c.senders[k] = m
	}
	return m
}

// source is batchyard_source.
func source(addr []byte) []byte {
	sep := bytes.LastIndexByte(addr, ':')
	if bytes.HasPrefix(addr, []byte("kafka:")) {
		sep = bytes.IndexByte(addr, '/')
	}
	if sep < 0 {
		return addr
	}
	return addr[:sep]
}

// left returns the first n characters.
func left(b []byte, n int) []byte {
	if len(b) <= n {
		return b
	}
	for i := range string(b) {
		if n == 0 {
			return b[:i]
		}
		n--
	}
	return b
}

// textOf returns a member of an object, as ->> does; nil if it has none. It finds it without decoding in an object
// of numbers and plain texts.
func textOf(object []byte, member string) []byte {
	if bytes.IndexByte(object, '\\') < 0 && bytes.Count(object, []byte("{")) == 1 {
		i := bytes.LastIndex(object, []byte(member))
		if i < 1 {
			return nil
		}
		rest, ok := bytes.CutPrefix(object[i+len(member):], []byte(`":`))
		if ok && object[i-1] == '"' && len(rest) > 0 {
			if rest[0] == '"' {
				if end := bytes.IndexByte(rest[1:], '"'); end >= 0 {
					return rest[1 : 1+end]
				}
			} else if end := bytes.IndexAny(rest, ",}"); end > 0 && rest[0] >= '0' && rest[0] <= '9' {
				return rest[:end]
			}
		}
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(object, &all) != nil || all[member] == nil || string(all[member]) == "null" {
		return nil
	}
	var text string
	if json.Unmarshal(all[member], &text) == nil {
		return []byte(text)
	}
	return all[member]
}

// result counts a row of results.
func (c *Counter) result(r *copyrows.Row) {
	const state, model, endpoint, submitted, assigned, started = resultState, 12, 14, 21, 22, 23
	at := r.Int8(resultFinished)
	c.ended(r.Field(0), r.Field(1), string(r.Field(state)), at, subtract)
	c.begin()
	for _, i := range [...]int{0, model, endpoint, state} {
		c.text(r.Field(i))
	}
	c.add(countsUsage, at, 1, int64(r.Int4(7)), r.Int8(9), r.Int8(10))
	if a, s := r.Int8(assigned), r.Int8(started); !r.Null(assigned) && !r.Null(started) && s >= a {
		c.latency(at, "dispatch", r.Field(model), s-a)
	}
	if s := r.Int8(submitted); !r.Null(submitted) && string(r.Field(state)) == "SUCCESS" && at >= s {
		c.latency(at, "total", r.Field(model), at-s)
	}
}

// kept subtracts a row of a rollup: day (number of days since 1970), hour, shard, keys, sums, and for senders
// the first and the last time.
func (c *Counter) kept(rollup int, r *copyrows.Row) {
	of := &rollups[rollup]
	day, hour, shard := int64(r.Int4(0)), r.Int4(1), r.Int4(2)
	if day == math.MinInt32 || hour < -1 || hour > 23 || shard < -1 || r.Int8(3+of.keyCount) <= 0 || of.days && hour != -1 {
		if len(c.absurd) < most {
			c.absurd = append(c.absurd, of.describe(r))
		}
		if day == math.MinInt32 {
			return
		}
	}
	if day < c.from {
		c.older = true
		return
	}
	c.begin()
	at := 3
	for range of.keyCount {
		switch f := r.Field(at); {
		case rollup == countsLatency && at == 5 || rollup == countsBatches && at == 5:
			c.number(int64(r.Int4(at)))
		default:
			c.text(f)
		}
		at++
	}
	d := c.of(rollup, day)
	coefficient := maphash.Bytes(c.seed, c.key)
	for i := range of.sums {
		n := r.Int8(at + i)
		if hour == -1 || shard >= 0 {
			d.all[i].add(coefficient, -n)
		}
		if hour >= 0 && d.hours != nil && hour < 24 && rollup != countsSubmissions {
			d.hours[hour].totals[i].add(coefficient, -n)
			d.hours[hour].kept = true
		} else if hour >= 0 && d.hours == nil && shard < 0 { // hours of days that have none
			d.late = true
		}
	}
	if rollup == countsSubmissions {
		m := c.moments(day)
		m.keptFirst, m.keptLast = min(m.keptFirst, r.Int8(at+len(of.sums))), max(m.keptLast, r.Int8(at+len(of.sums)+1))
	}
}

// differingDays returns the days, since 1970, on which a rollup does not match what it counts.
func (c *Counter) differingDays(rollup int) (days []int64) {
	for day, d := range c.days[rollup] {
		// Hours are deleted two days later.
		if d.late || d.all != (totals{}) || slices.ContainsFunc(d.hours, func(h hourTotal) bool { return h.totals != (totals{}) && (h.kept || day >= c.recent+keptHours-1) }) {
			days = append(days, day)
		}
	}
	slices.Sort(days)
	return days
}

// sendersDiffer reports whether a sender's first or last time is not that of the rows.
func (c *Counter) sendersDiffer() bool {
	for _, m := range c.senders {
		if m.first != m.keptFirst || m.last != m.keptLast {
			return true
		}
	}
	return false
}

// allDays returns all days of a rollup.
func (c *Counter) allDays(rollup int) []int64 { return slices.Sorted(maps.Keys(c.days[rollup])) }

func dayOf(day int64) time.Time { return time.Unix(day*86400, 0).UTC() }
