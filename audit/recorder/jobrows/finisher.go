package jobrows

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/jobview"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Bounds of a round of checks.
const (
	roundPause   = time.Second
	roundTimeout = 30 * time.Second
	maxOpen      = 10_000 // jobs that are checked; the newest
)

// Finisher finds the announced jobs whose tasks have all finished. It stores their summaries, so
// that they are never counted again, and creates their callbacks, in one transaction each. Any
// number of processes may do so: a job's row is locked while it is counted for good.
type Finisher struct {
	// Report writes an event; nil: events are not written. If the process dies before it has, the log has no
	// digest of the row, until the row is written again.
	Report func(ctx context.Context, e *task.Event)

	pool   *pgxpool.Pool
	logger *slog.Logger
	open   map[key]*watched
}

// watched is a job that has not finished.
type watched struct {
	done, known int64
	pause       time.Duration
	next        time.Time
}

// NewFinisher returns a finisher; Run starts it.
func NewFinisher(pool *pgxpool.Pool, logger *slog.Logger) *Finisher {
	return &Finisher{pool: pool, logger: logger, open: map[key]*watched{}}
}

// Run checks the open jobs until ctx ends. While Postgres is away, jobs finish later.
func (f *Finisher) Run(ctx context.Context) {
	tick := time.NewTicker(roundPause)
	defer tick.Stop()
	failing := false
	for {
		err := f.Round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			f.logger.Warn("checking which jobs have finished failed; trying again until it works", "error", pg.Describe(err))
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Round checks each open job whose pause is over.
func (f *Finisher) Round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	rows, err := f.pool.Query(ctx, `SELECT tenant, job_id FROM jobs WHERE finished_at IS NULL AND tasks IS NOT NULL ORDER BY submitted_at DESC LIMIT $1`, maxOpen)
	if err != nil {
		return fmt.Errorf("listing the open jobs: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (k key, err error) { return k, r.Scan(&k.tenant, &k.job) })
	if err != nil {
		return fmt.Errorf("listing the open jobs: %w", err)
	}
	open := make(map[key]*watched, len(keys))
	for _, k := range keys {
		w := f.open[k]
		if w == nil {
			w = &watched{}
		}
		open[k] = w
	}
	f.open = open
	for k, w := range open {
		if time.Now().Before(w.next) {
			continue
		}
		if err := f.check(ctx, k, w); err != nil {
			return fmt.Errorf("checking job %s: %w", k.job, err)
		}
	}
	return nil
}

// check finishes a job if all of its tasks have finished.
func (f *Finisher) check(ctx context.Context, k key, w *watched) error {
	begin := time.Now()
	var state task.JobState
	var done, known int64
	err := f.pool.QueryRow(ctx, `SELECT state, done, known FROM job_progress WHERE tenant = $1 AND job_id = $2`, k.tenant, k.job).Scan(&state, &done, &known)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	before := w.pause
	if done != w.done || known != w.known {
		before = 0
	}
	w.pause = pauseAfter(time.Since(begin), before)
	w.done, w.known, w.next = done, known, begin.Add(w.pause)
	if state == task.JobRunning {
		return nil
	}
	return f.finish(ctx, k)
}

// lockSQL comes before the counting, in a statement of its own: what is counted must be newer than
// the lock, for which a retry of a task waits.
const lockSQL = `SELECT FROM jobs WHERE tenant = $1 AND job_id = $2 AND finished_at IS NULL FOR UPDATE SKIP LOCKED`

// finishSQL does nothing if a task was retried in the meantime.
var finishSQL = `
UPDATE jobs j SET finished_at = now(), rounds = j.rounds + 1, version = j.version + 1, summary = json_build_object(
	'known', p.known, 'done', p.done, 'pending', p.pending, 'assigned', p.assigned, 'running', p.running,
	'succeeded', p.succeeded, 'failed', p.failed, 'cancelled', p.cancelled, 'expired', p.expired,
	'rate', p.done / greatest(0.001, extract(epoch FROM p.last_finished_at - j.submitted_at)::float8),
	'input_tokens', p.input_tokens, 'output_tokens', p.output_tokens, 'errors', p.errors, 'devices', p.devices, 'last_finished_at', p.last_finished_at)
FROM job_progress p
WHERE j.tenant = $1 AND j.job_id = $2 AND j.finished_at IS NULL AND p.tenant = $1 AND p.job_id = $2 AND p.state <> 'RUNNING'` + returning + `, now(), j.rounds, coalesce(j.callback_url, '')`

const callbackSQL = `INSERT INTO callbacks (callback_id, tenant, job_id, body, url, host) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (callback_id) DO NOTHING`

// finish stores the summary and creates the callback. If the process dies before the commit, nothing
// has happened, and the next check repeats it.
func (f *Finisher) finish(ctx context.Context, k key) error {
	tx, err := f.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return err
	}
	defer pg.Rollback(ctx, tx)
	if tag, err := tx.Exec(ctx, lockSQL, k.tenant, k.job); err != nil || tag.RowsAffected() == 0 {
		return err // another process is at it
	}
	var callback string
	var version, round int64
	var record, digests []byte
	var now time.Time
	err = tx.QueryRow(ctx, finishSQL, k.tenant, k.job).Scan(&version, &record, &now, &round, &callback)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	d := audit.DigestRow(audit.JobRows, version, pg.FieldsOfRecord(nil, record))
	digests = d.Append(digests)
	if callback != "" {
		if d, err = queueCallback(ctx, tx, k, callback); err != nil {
			return err
		}
		digests = d.Append(digests)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	if f.Report != nil {
		e := task.Event{Time: now.UTC(), Action: task.JobCompleted, Outcome: task.OutcomeOK, Tenant: k.tenant, ActorType: task.ActorStage, ResourceType: "job", ResourceID: k.job, JobID: k.job}
		e.Detail, _ = json.Marshal(map[string]any{"round": round, "digests": audit.TextOfDigests(digests)}) // text and numbers: it cannot fail
		f.Report(ctx, &e)
	}
	return nil
}

// queueCallback makes the callback of a job due that has just finished.
func queueCallback(ctx context.Context, tx pgx.Tx, k key, target string) (d audit.RowDigest, err error) {
	j, err := jobview.Scan(tx.QueryRow(ctx, `SELECT `+jobview.Columns+` FROM job_progress WHERE tenant = $1 AND job_id = $2`, k.tenant, k.job))
	if err != nil {
		return d, err
	}
	id := CallbackID(k.tenant, k.job, j.Rounds)
	body := payload{ID: id, Object: "event", Type: "job.finished", Data: j}
	if j.LastDone != nil {
		body.CreatedAt = j.LastDone.Unix()
	}
	text, err := json.Marshal(body)
	if err != nil {
		return d, err
	}
	host := ""
	if u, err := url.Parse(target); err == nil { // it was checked when the job was announced
		host = strings.ToLower(u.Host)
	}
	if _, err := tx.Exec(ctx, callbackSQL, id, k.tenant, k.job, text, target, host); err != nil {
		return d, err
	}
	var row pg.Fields
	for _, s := range []string{id, k.tenant} {
		row.Text(s)
	}
	row.Null()  // task_id
	row.Int4(0) // generation
	for _, s := range []string{k.job, string(text), target, host} {
		row.Text(s)
	}
	_, err = tx.Exec(ctx, "SELECT pg_notify($1, '')", pg.CallbacksChannel)
	return audit.DigestRow(audit.CallbackRows, 0, row.B), err
}

// payload is the body of a job's callback.
type payload struct {
	ID        string    `json:"id"`
	Object    string    `json:"object"`
	Type      string    `json:"type"`
	CreatedAt int64     `json:"created_at"`
	Data      *task.Job `json:"data"`
}

// CallbackID returns the id of the callback of a job that has finished for the given time: 1 is the
// first, 2 the next after a retry.
func CallbackID(tenant, job string, round int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "job\x00%s\x00%s\x00%d", tenant, job, round))
	return "evt_" + hex.EncodeToString(sum[:16])
}
