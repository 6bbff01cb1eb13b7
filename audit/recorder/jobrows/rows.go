// Package jobrows keeps the table jobs: a row for each job, from the events of a chunk, in the
// transaction that writes them; and the state of those that have finished.
//
//	job.submitted ──────────▶ ┌─────┐   Finisher: every task    ┌──────────┐
//	first task of a job ────▶ │ open│ ────────────────────────▶ │ finished │──▶ callback
//	job.cancel_requested ───▶ └─────┘ ◀──────────────────────── └──────────┘
//	                                     a task is retried
//
// Events may arrive in any order, so each statement gives the same row whichever comes first. A
// job keeps the fingerprint of the file that announced it first.
package jobrows

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// key is the identity of a job.
type key struct{ tenant, job string }

// Rows is what a chunk says about jobs. The zero value is empty. It is used by one goroutine.
type Rows struct {
	seen      map[key]time.Time // the earliest event of a task
	last      key               // of seen: most events of a chunk are of one job
	announced []announced
	cancelled map[key]time.Time
	retried   []retried
	changed   map[key]bool // by results of retries
}

// retried is a task that a user asked to run again.
type retried struct {
	key
	task string
}

type announced struct {
	key
	by       string
	at       time.Time
	callback string
	spec     task.JobSpec
}

// Reset empties the rows for the next chunk.
func (r *Rows) Reset() { *r = Rows{} }

// Add takes from an event what it says about a job.
func (r *Rows) Add(e *task.Event) {
	k := key{e.Tenant, e.JobID}
	if e.JobID == "" || e.Tenant == "" || !pg.Fits(e.JobID, task.MaxIDLength) {
		return
	}
	switch {
	case e.TaskID != "":
		r.see(k, e.Time)
		if e.Action == task.TaskRetried {
			r.retried = append(r.retried, retried{k, e.TaskID})
		}
	case e.Outcome != task.OutcomeOK:
	case e.Action == task.JobCancelRequested:
		if r.cancelled == nil {
			r.cancelled = map[key]time.Time{}
		}
		r.cancelled[k] = e.Time
	case e.Action == task.JobSubmitted:
		if a, ok := announcement(e); ok {
			r.announced = append(r.announced, a)
		}
	}
}

// AddResult takes the job of a result that was taken.
func (r *Rows) AddResult(res *task.Result) {
	if res.JobID == "" || !pg.Fits(res.JobID, task.MaxIDLength) {
		return
	}
	k := key{res.Tenant, res.JobID}
	r.see(k, res.FinishedAt)
	if res.Generation > 0 {
		if r.changed == nil {
			r.changed = map[key]bool{}
		}
		r.changed[k] = true
	}
}

func (r *Rows) see(k key, at time.Time) {
	if k == r.last {
		return // events of a chunk come about in the order of their times
	}
	r.last = k
	if before, ok := r.seen[k]; ok && !at.Before(before) {
		return
	}
	if r.seen == nil {
		r.seen = map[key]time.Time{}
	}
	r.seen[k] = at
}

// announcement reads the event job.submitted. ok is false if no row can be made of it.
func announcement(e *task.Event) (a announced, ok bool) {
	a = announced{key: key{e.Tenant, e.JobID}, by: e.ActorID, at: e.Time, callback: e.CallbackURL}
	if json.Unmarshal(e.Detail, &a.spec) != nil {
		return a, false
	}
	a.spec.JobID, a.spec.Tenant, a.spec.Callback = e.JobID, e.Tenant, nil
	if e.CallbackURL != "" {
		a.spec.Callback = &task.Callback{URL: e.CallbackURL}
	}
	return a, a.spec.Validate() == nil
}

// returning returns a row as it was written, for its digest.
var returning = " RETURNING j.version, record_send(ROW(j." + strings.Join(strings.FieldsFunc(audit.JobColumns, func(r rune) bool { return unicode.IsSpace(r) || r == ',' }), ", j.") + "))"

// Written is called for each row that was written, with its version and its fields as record_send returns them.
type Written func(version int64, record []byte)

func (w Written) scan(rows pgx.Rows) error {
	var version int64
	var record []byte
	_, err := pgx.ForEachRow(rows, []any{&version, &record}, func() error {
		w(version, record)
		return nil
	})
	return err
}

var seenSQL = `INSERT INTO jobs AS j (tenant, job_id, submitted_at) SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[]) ON CONFLICT (tenant, job_id) DO NOTHING` + returning

// announceSQL keeps the first file. Announced again, an incomplete job that was cancelled continues.
var announceSQL = `
INSERT INTO jobs AS j (tenant, job_id, fingerprint, tasks, lines, bad_lines, bytes, file, format, labels, callback_url, submitted_at, submitted_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, nullif($8, ''), nullif($9, ''), $10, nullif($11, ''), $12, $13)
ON CONFLICT (tenant, job_id) DO UPDATE SET
	fingerprint  = excluded.fingerprint,
	tasks        = coalesce(j.tasks, excluded.tasks),
	lines        = coalesce(j.lines, excluded.lines),
	bad_lines    = coalesce(j.bad_lines, excluded.bad_lines),
	bytes        = coalesce(j.bytes, excluded.bytes),
	file         = coalesce(j.file, excluded.file),
	format       = coalesce(j.format, excluded.format),
	labels       = coalesce(j.labels, excluded.labels),
	callback_url = coalesce(excluded.callback_url, j.callback_url),
	submitted_by = coalesce(j.submitted_by, excluded.submitted_by),
	submitted_at = least(j.submitted_at, excluded.submitted_at),
	cancel_requested_at = CASE WHEN (j.finished_at IS NULL OR (j.summary->>'known')::bigint < j.tasks) AND j.cancel_requested_at < excluded.submitted_at
		THEN NULL ELSE j.cancel_requested_at END,
	finished_at  = CASE WHEN (j.summary->>'known')::bigint < j.tasks THEN NULL ELSE j.finished_at END,
	version      = j.version + 1
WHERE j.fingerprint IS NULL OR j.fingerprint = excluded.fingerprint` + returning

// cancelSQL leaves a job alone that has finished.
var cancelSQL = `
INSERT INTO jobs AS j (tenant, job_id, submitted_at, cancel_requested_at) VALUES ($1, $2, $3, $3)
ON CONFLICT (tenant, job_id) DO UPDATE SET cancel_requested_at = excluded.cancel_requested_at, version = j.version + 1
WHERE j.finished_at IS NULL AND j.cancel_requested_at IS NULL` + returning

// A finished job that is retried is open again, and what was counted is forgotten. These wait for the
// lock of a finisher that is counting: without that, it could store counts that are older than the
// retry. reopenSQL leaves the job alone if the new run has ended already: then its result, which
// changes the counts, reopens it.
var (
	reopenSQL = `
UPDATE jobs j SET finished_at = NULL, summary = NULL, version = j.version + 1
FROM (SELECT DISTINCT u.tenant, u.job_id FROM unnest($1::text[], $2::text[], $3::text[]) AS u (tenant, job_id, task_id)
	JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id WHERE t.finished_at IS NULL) r
WHERE j.tenant = r.tenant AND j.job_id = r.job_id` + returning
	recountSQL = `
UPDATE jobs j SET finished_at = NULL, summary = NULL, version = j.version + 1 FROM unnest($1::text[], $2::text[]) AS u (tenant, job_id)
WHERE j.tenant = u.tenant AND j.job_id = u.job_id` + returning
)

// Queue adds the statements to a batch, after those that write the states of the tasks. Two recorders that meet the same new jobs in different
// orders may deadlock; Postgres then aborts one of the two, which tries again.
func (r *Rows) Queue(b *pgx.Batch, written Written) {
	if len(r.seen) > 0 {
		var tenants, jobs []string
		var at []time.Time
		for _, k := range sorted(r.seen) {
			tenants, jobs, at = append(tenants, k.tenant), append(jobs, k.job), append(at, r.seen[k])
		}
		b.Queue(seenSQL, tenants, jobs, at).Query(written.scan)
	}
	slices.SortStableFunc(r.announced, func(x, y announced) int { return compare(x.key, y.key) })
	for i := range r.announced {
		a := &r.announced[i]
		sum, _ := hex.DecodeString(a.spec.SHA256) // Validate has checked it
		var labels []byte
		if len(a.spec.Labels) > 0 {
			labels, _ = json.Marshal(a.spec.Labels) // of strings: it cannot fail
		}
		b.Queue(announceSQL, a.tenant, a.job, sum, a.spec.Tasks, a.spec.Lines, a.spec.BadLines, a.spec.Bytes, a.spec.File, a.spec.Format, labels, a.callback, a.at, a.by).Query(written.scan)
	}
	for _, k := range sorted(r.cancelled) {
		b.Queue(cancelSQL, k.tenant, k.job, r.cancelled[k]).Query(written.scan)
	}
	r.queueReopened(b, written)
}

func (r *Rows) queueReopened(b *pgx.Batch, written Written) {
	if len(r.retried) > 0 {
		var tenants, jobs, tasks []string
		for _, t := range r.retried {
			tenants, jobs, tasks = append(tenants, t.tenant), append(jobs, t.job), append(tasks, t.task)
		}
		b.Queue(reopenSQL, tenants, jobs, tasks).Query(written.scan)
	}
	if len(r.changed) > 0 {
		var tenants, jobs []string
		for _, k := range sorted(r.changed) {
			tenants, jobs = append(tenants, k.tenant), append(jobs, k.job)
		}
		b.Queue(recountSQL, tenants, jobs).Query(written.scan)
	}
}

func sorted[V any](m map[key]V) []key {
	keys := make([]key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}

func compare(x, y key) int { return cmp.Or(cmp.Compare(x.tenant, y.tenant), cmp.Compare(x.job, y.job)) }

// maxPause bounds how long a job waits for its next check.
const maxPause = 10 * time.Second

// pauseAfter returns how long a job is left alone after a check: ten times as long as that took,
// and twice as long as before, which is 0 if something has changed.
func pauseAfter(took, before time.Duration) time.Duration {
	const shortest = time.Second
	return min(max(10*took, min(2*before, math.MaxInt64/2), shortest), maxPause)
}
