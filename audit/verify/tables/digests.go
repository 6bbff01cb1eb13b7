package tables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Log is what the log says about rows of other tables: their digests, and how much there is of everything that
// rollups count.
//
// It takes 32 to 64 bytes of memory for each row of results, tasks, callbacks and jobs, and for each sender of each
// day; nothing for a row of the log.
type Log struct {
	seed       maphash.Seed
	results    index
	tasks      index
	callbacks  index
	deliveries index
	before     index // the deliveries before those
	jobs       index
	jobsSaid   announcements
	rows       int       // in all of them
	most       int       // bound of rows
	recent     time.Time // see Options.Before
	now        time.Time
	complete   time.Time // see Options
	partial    bool      // see Options
	damaged    bool      // see Damaged
	fellBack   bool      // see FellBack

	counted *Counter

	mu      sync.Mutex
	differ  []Row
	many    int64 // rows that differ
	unknown [5]unknown
}

// unknown counts rows that the log is silent about.
type unknown struct {
	n       int64
	example string
}

// The tables, as indexes.
const (
	inResults = iota
	inTasks
	inCallbacks
	inJobs
	inAttempts // callbacks after attempts that have no event
)

// Row is a row that is not as the log says.
type Row struct {
	Table      string
	Tenant, ID string // of the task or the job; the id of a callback
	What       string
	Gone       bool
}

// maxRows bounds the rows that are named.
const maxRows = 1000

// NewLog returns an empty log.
func NewLog(o Options) *Log {
	l := &Log{seed: maphash.MakeSeed(), most: o.MaxRows, jobsSaid: announcements{}, recent: o.Before, now: o.Now, complete: o.Complete, partial: o.Partial}
	l.counted = l.Counter()
	return l
}

// ErrTooMany says that there are more digests than the bound.
var ErrTooMany = errors.New("the log has digests of more rows than --max-rows allows to keep in memory, about 50 bytes each: raise it, or verify with --log-only")

// key hashes the key of a row.
func (l *Log) key(k audit.RowKey, version uint32) uint64 {
	var b [20]byte
	copy(b[:], k[:])
	binary.BigEndian.PutUint32(b[16:], version)
	return max(1, maphash.Bytes(l.seed, b[:]))
}

// sum hashes a digest, and the time at which the row was written if the row has it.
func (l *Log) sum(d *audit.Hash, at int64) uint64 {
	var b [40]byte
	copy(b[:], d[:])
	binary.BigEndian.PutUint64(b[32:], uint64(at)) //nolint:gosec // two's complement
	return maphash.Bytes(l.seed, b[:])
}

// Take takes the digests that an audit row has. It is called by one goroutine at a time.
func (l *Log) Take(r *copyrows.Row) error {
	if b := r.Field(audit.ColDigests); b != nil {
		if err := l.take(b, r.Int8(audit.ColIngested)); err != nil {
			return err
		}
	}
	switch string(r.Field(audit.ColAction)) {
	case "job.finished", "callback.delivered", "callback.failed", "callback.given_up":
		if b, err := audit.DigestsInDetail(r.Field(audit.ColDetail)); err == nil {
			return l.take(b, r.Int8(audit.ColTime))
		}
	case "job.submitted":
		var most error
		l.announced(r, &most)
		return most
	}
	return nil
}

// take takes digests. at is when rows of results and callbacks were written.
func (l *Log) take(b []byte, at int64) error {
	var most error
	// A value that is malformed does not match the hash of its row, which is reported.
	_ = audit.ReadDigests(b, func(d *audit.RowDigest) {
		x, version := &l.tasks, uint32(0)
		written := int64(0)
		switch d.Table {
		case audit.ResultRows:
			x, version, written = &l.results, d.Version, at
		case audit.TaskRows:
		case audit.CallbackRows:
			x, written = &l.callbacks, at
		case audit.JobRows:
			x = &l.jobs
		case audit.DeliveryRows:
			x = &l.deliveries
		default:
			return
		}
		key, sum := l.key(d.Key, version), l.sum(&d.Digest, written)
		s, isNew := x.at(key)
		newer := int32(d.Version - s.version) //nolint:gosec // versions may wrap
		switch {
		case isNew:
			l.count(&most)
		case newer < -1 || newer == -1 && x != &l.deliveries:
			return
		case newer == -1:
			l.keepBefore(key, d.Version, sum, &most)
			return
		case newer == 1 && x == &l.deliveries:
			l.keepBefore(key, s.version, s.sum, &most)
		}
		s.version, s.sum = d.Version, sum
	})
	return most
}

func (l *Log) count(most *error) {
	if l.rows++; l.rows > l.most {
		*most = ErrTooMany
	}
}

// keepBefore keeps the last delivery but one of a callback.
func (l *Log) keepBefore(key uint64, version uint32, sum uint64, most *error) {
	s, isNew := l.before.at(key)
	if isNew {
		l.count(most)
	}
	s.version, s.sum = version, sum
}

// differs notes a row that is not as the log says.
func (l *Log) differs(r Row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.many++; len(l.differ) < maxRows {
		l.differ = append(l.differ, r)
	}
}

// silent notes a row about which the log says nothing.
func (l *Log) silent(table int, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := &l.unknown[table]
	if u.n++; u.example == "" {
		u.example = name
	}
}

func name(r *copyrows.Row, i int) string { return strings.ToValidUTF8(string(r.Field(i)), "?") }

// Damaged says that rows of the log are missing or were changed: then it proves nothing that it is silent about
// a row. It has to be called before rows are compared.
func (l *Log) Damaged() { l.damaged = true }

// FellBack says that Postgres had lost rows that it had confirmed, as after a failover, or that a backup was restored.
// What came from Kafka was recorded again, but not what other processes wrote: how often a callback was tried, and that a
// job was finished. They did that again, and the log has the events of both times. It has to be called before rows are
// compared.
func (l *Log) FellBack() { l.fellBack = true }

// compare compares a row that exists with what the log says. old reports whether the log may have lost the
// digest of the row.
func (l *Log) compare(s *slot, sum uint64, what Row, table int, old bool) bool {
	switch {
	case s == nil && (old || l.damaged):
		if !l.partial {
			l.silent(table, what.Tenant+"/"+what.ID)
		}
	case s == nil:
		what.What += ", and no recorder wrote it"
		l.differs(what)
	case !s.found():
		what.What += ", and exists twice"
		l.differs(what)
	case s.sum != sum:
		what.What += ", which is not what was recorded: the SHA-256 in the log is another"
		l.differs(what)
	default:
		return true
	}
	return false
}

// result compares a row of results: [audit.ResultColumns], recorded_at.
func (l *Log) result(r *copyrows.Row, old bool) {
	d := audit.DigestRow(audit.ResultRows, int64(r.Int4(25)), r.Fields(0, 27))
	s := l.results.get(l.key(d.Key, d.Version))
	if sum := l.sum(&d.Digest, r.Int8(27)); s != nil && s.sum == sum && s.found() {
		return
	}
	tenant, id := name(r, 0), name(r, 1)
	what := Row{Table: "results", Tenant: tenant, ID: id, What: fmt.Sprintf("the table results has a result of task %s/%s (generation %d): %s", tenant, id, r.Int4(25), name(r, 2))}
	if s == nil {
		l.compare(nil, 0, what, inResults, old)
		return
	}
	l.compare(s, s.sum+1, what, inResults, old)
}

// task compares a row of tasks: [audit.TaskColumns], version.
func (l *Log) task(r *copyrows.Row, old bool) { //nolint:revive // what the row is
	d := audit.DigestRow(audit.TaskRows, r.Int8(26), r.Fields(0, 26))
	s := l.tasks.get(l.key(d.Key, 0))
	if s != nil && s.version == d.Version && r.Int8(26)>>32 == 0 && s.sum == l.sum(&d.Digest, 0) && s.found() {
		return
	}
	tenant, id := name(r, 0), name(r, 1)
	what := Row{Table: "tasks", Tenant: tenant, ID: id, What: fmt.Sprintf("the table tasks has the task %s/%s: %s, written %d times", tenant, id, name(r, 2), r.Int8(26))}
	if s == nil {
		l.compare(nil, 0, what, inTasks, old)
		return
	}
	if (l.damaged || old) && int32(d.Version-s.version) > 0 && s.found() { //nolint:gosec // versions may wrap
		if !l.partial { // a later digest may be gone
			l.silent(inTasks, tenant+"/"+id)
		}
		return
	}
	if s.version != d.Version {
		what.What += fmt.Sprintf(" (%d times according to the log)", s.version)
	}
	l.compare(s, s.sum+1, what, inTasks, old)
}

// job compares a row of jobs: [audit.JobColumns], version. A job is finished by a process that writes an event of
// it afterwards, so a row may be newer than the log.
func (l *Log) job(r *copyrows.Row, old bool) { //nolint:revive // what the row is
	d := audit.DigestRow(audit.JobRows, r.Int8(17), r.Fields(0, 17))
	s := l.jobs.get(l.key(d.Key, 0))
	tenant, id := name(r, 0), name(r, 1)
	if s != nil && s.version == d.Version && r.Int8(17)>>32 == 0 && s.sum == l.sum(&d.Digest, 0) && s.found() {
		if column := l.notAnnounced(r); column != "" && !old && !l.damaged {
			l.differs(Row{Table: "jobs", Tenant: tenant, ID: id, What: fmt.Sprintf("the table jobs says of job %s/%s what no announcement in the log says: %s", tenant, id, column)})
		}
		return
	}
	what := Row{Table: "jobs", Tenant: tenant, ID: id, What: fmt.Sprintf("the table jobs has the job %s/%s, written %d times", tenant, id, r.Int8(17))}
	switch {
	case s == nil:
		l.compare(nil, 0, what, inJobs, old)
	case l.fellBack && s.found():
		l.silent(inJobs, tenant+"/"+id)
	case int32(d.Version-s.version) > 0 && (l.damaged || s.sum != l.sum(&d.Digest, 0)) && s.found(): //nolint:gosec // versions may wrap
		l.silent(inJobs, tenant+"/"+id)
	default:
		l.compare(s, s.sum+1, what, inJobs, old)
	}
}

// stateDue is the state of a callback that is still to be delivered.
const stateDue = "DUE"

// Columns of callbacks, as [Log.callback] gets them.
const (
	callbackState, callbackAttempts, callbackStatus, callbackError, callbackDelivered = 2, 3, 4, 5, 6
	callbackWhat, callbackTask, callbackCreated                                       = 7, 9, 15
)

// callback compares a row of callbacks: [audit.DeliveryColumns], [audit.CallbackColumns], created_at.
func (l *Log) callback(r *copyrows.Row, old bool) { //nolint:revive // what the row is
	id, tenant, state := name(r, 0), name(r, 1), name(r, callbackState)
	what := Row{Table: "callbacks", Tenant: tenant, ID: id, What: fmt.Sprintf("callback %s of tenant %s is %s after %d attempts in the table callbacks", id, tenant, state, r.Int4(callbackAttempts))}
	d := audit.DigestRow(audit.CallbackRows, 0, r.Fields(callbackWhat, callbackCreated))
	s := l.callbacks.get(l.key(d.Key, 0))
	sum := l.sum(&d.Digest, r.Int8(callbackCreated))
	if l.fellBack && r.Null(callbackTask) && s != nil && s.sum != sum && s.found() { // the job was finished again
		l.silent(inCallbacks, id)
		return
	}
	// That of a job comes before its event.
	if !l.compare(s, sum, what, inCallbacks, old || r.Null(callbackTask)) {
		return
	}
	switch proven, why := l.delivery(r, state); {
	case why != "" && l.fellBack:
		l.silent(inAttempts, id)
	case why != "":
		what.What += why
		l.differs(what)
	case !proven:
		l.silent(inAttempts, id)
	}
}

// delivery compares how a callback was delivered. The attempt is counted first, then there is an event of how it
// ended, then the row says so. why is not empty if the row contradicts the events.
func (l *Log) delivery(r *copyrows.Row, state string) (proven bool, why string) {
	attempts := r.Int4(callbackAttempts)
	key := l.key(audit.KeyOfRow(r.Fields(0, 2)), 0)
	e := l.deliveries.get(key)
	untried := state == stateDue && r.Null(callbackStatus) && r.Null(callbackError) && r.Null(callbackDelivered)
	was := func(e *slot, attempts uint32) bool {
		return e.version == attempts && e.sum == l.deliveryAt(r, attempts)
	}
	tried := int32(0)
	if e != nil {
		tried = int32(e.version) //nolint:gosec // as it was written
	}
	switch {
	case attempts == 0 && e == nil:
		if !untried {
			return false, ", although it was never tried"
		}
		return true, ""
	case attempts < tried || attempts > tried && e != nil && state != stateDue && was(e, e.version):
		return false, fmt.Sprintf("; the log has %d", tried)
	case attempts > tried: // it is being delivered, or a process died while it was
		return false, ""
	case was(e, uint32(attempts)): //nolint:gosec // as it was written
		return true, ""
	}
	// Between the event and the row, which is a long time if a process died there, the row says how the attempt before ended.
	before := l.before.get(key)
	if state == stateDue && r.Null(callbackDelivered) && (attempts == 1 && untried || attempts > 1 && (before == nil || was(before, uint32(attempts-1)))) { //nolint:gosec // it is positive
		return false, ""
	}
	return false, "; the log says that this delivery ended otherwise"
}

// deliveryAt returns the digest that the row of a callback would have after so many attempts.
func (l *Log) deliveryAt(r *copyrows.Row, attempts uint32) uint64 {
	fields, at := slices.Clone(r.Fields(0, callbackWhat)), len(r.Fields(0, callbackAttempts+1))
	if len(r.Field(callbackAttempts)) == 4 {
		binary.BigEndian.PutUint32(fields[at-4:], attempts)
	}
	d := audit.DigestRow(audit.DeliveryRows, 0, fields)
	return l.sum(&d.Digest, 0)
}

// Differing returns rows that are not as the log says, at most [maxRows], and the number of all.
func (l *Log) Differing() ([]Row, int64) { return l.differ, l.many }

// Unproven says about which rows the log is silent.
func (l *Log) Unproven() (all []string) {
	for i, text := range []string{"%d results have no digest in the log, such as that of task %s", "%d tasks have no digest in the log of what they are now, such as %s", "%d callbacks have no digest in the log, such as %s",
		"%d jobs have no digest in the log of what they are now, such as %s", "%d callbacks were delivered, or are being delivered, for a time that the log has no event of, such as %s"} {
		if u := l.unknown[i]; u.n > 0 {
			all = append(all, fmt.Sprintf(text, u.n, u.example))
		}
	}
	return all
}

// OlderRollups reports whether rollups count days of which the log does not have all rows.
func (l *Log) OlderRollups() bool { return l.counted.older }

// missing counts the rows of which the log has a digest, and that do not exist.
func (x *index) missing() (n int64) {
	for i := range x.slots {
		if s := &x.slots[i]; s.key != 0 && s.seen == 0 {
			n++
		}
	}
	return n
}

// Missing returns how many rows of each table are gone.
func (l *Log) Missing() map[string]int64 {
	return map[string]int64{"results": l.results.missing(), "tasks": l.tasks.missing(), "callbacks": l.callbacks.missing(), "jobs": l.jobs.missing()}
}

// maxGenerations bounds the results of a task that are looked for by name.
const maxGenerations = 16

// Namer finds names of rows that are gone.
type Namer struct {
	l    *Log
	left map[string]int64 // rows without a name, by table
}

// Namer returns one for all that is gone.
func (l *Log) Namer() *Namer { return &Namer{l, l.Missing()} }

// Name adds the rows that are gone and that a name fits: tenant and id of a task, or else of a job.
func (n *Namer) Name(tenant, id string, ofTask bool) { //nolint:revive // what the name is of
	l := n.l
	var f pg.Fields
	f.Text(tenant)
	f.Text(id)
	k := audit.KeyOfRow(f.B)
	gone := func(table, what string, s *slot) {
		if s != nil && s.seen == 0 {
			s.seen = 1
			n.left[table]--
			l.differs(Row{Table: table, Tenant: tenant, ID: id, What: fmt.Sprintf("the table %s has no %s %s/%s, which was recorded", table, what, tenant, id), Gone: true})
		}
	}
	if ofTask && n.left["tasks"] > 0 {
		gone("tasks", "task", l.tasks.get(l.key(k, 0)))
	}
	if ofTask && n.left["results"] > 0 {
		for g := range uint32(maxGenerations) {
			gone("results", "result of task", l.results.get(l.key(k, g)))
		}
	}
	if ofTask && n.left["callbacks"] > 0 {
		for g := range uint32(maxGenerations) {
			f.Reset(0)
			f.Text(task.Run{Key: task.Key{Tenant: tenant, ID: id}, Generation: int(g)}.CallbackID())
			f.Text(tenant)
			gone("callbacks", "callback of task", l.callbacks.get(l.key(audit.KeyOfRow(f.B), 0)))
		}
	}
	if !ofTask && n.left["jobs"] > 0 {
		gone("jobs", "job", l.jobs.get(l.key(k, 0)))
	}
}

// ids returns the ids of tasks that differ.
func ids(rows []Row) (all []string) {
	for _, r := range rows {
		if r.Table == "tasks" || r.Table == "results" {
			all = append(all, r.ID)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
