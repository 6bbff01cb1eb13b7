// Package feed runs jobs whose files Batchyard stores: the batches of OpenAI's API. It checks the file, submits
// its lines as tasks, waits until they have finished, and writes the output.
//
//	            ┌──▶ failed                                  ┌──▶ completed
//	validating ─┴──▶ in_progress ──────────────▶ finalizing ─┴──▶ expired
//	     └───────────────┴─────▶ cancelling ─────────────────────▶ cancelled
//
// Any number of processes may do so. A process works on a job as long as it holds its lease, which it renews; if
// it dies, another one continues within seconds. Before tasks are submitted, the row says up to which line; once
// Kafka has acknowledged them, it says so, too. The next owner submits again what lies between, which is harmless:
// the ids of the tasks are made of the job and the line. Every change of a row requires the lease, so an owner that
// was away for too long changes nothing.
//
// The output is written to new files, which become visible in the transaction that ends the job: each line is
// in them exactly once, however often writing had to begin again.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Bounds of the work.
const (
	leaseTime   = 15 * time.Second
	renewEvery  = 4 * time.Second
	roundPause  = 500 * time.Millisecond
	concurrent  = 8                // jobs that a process works on at a time
	retryPause  = 5 * time.Second  // after an error
	cleanPause  = 10 * time.Minute // between searches for content to remove
	shortPause  = 250 * time.Millisecond
	longPause   = 10 * time.Second
	grace       = 10 * time.Minute // for requests that are running when a job is cancelled or expires
	maxProblems = 1000             // lines that are reported
)

// Producer writes tasks and events to Kafka.
type Producer interface {
	Submit(ctx context.Context, tasks []*task.Task, o task.Origin) error
	AnnounceJob(ctx context.Context, s *task.JobSpec, o task.Origin) error
	Cancel(ctx context.Context, r *producer.Recent, o task.Origin) error
	RecordNow(ctx context.Context, e task.Event, detail any) error
	Config() producer.Config
}

// Tasks reads the tasks and results of jobs.
type Tasks interface {
	jobs.Source
	JobTasks(ctx context.Context, job task.Key, in []task.State, after string, limit int) ([]status.TaskRow, error)
}

// Overrides knows which tasks were cancelled already.
type Overrides interface {
	Get(ctx context.Context, keys ...task.Key) ([]device.Override, error)
}

// Deps is what a feeder works with.
type Deps struct {
	Pool      *pgxpool.Pool
	Files     *files.Store
	Producer  Producer
	Tasks     Tasks
	Overrides Overrides
	Config    jobs.Config
	Logger    *slog.Logger
}

// Feeder runs jobs.
type Feeder struct {
	deps   Deps
	log    *slog.Logger
	wake   chan struct{}
	slots  chan struct{} // holds one for each job that is worked on
	failed bool          // the last search for work
}

// New returns a feeder; Run starts it.
func New(d Deps) *Feeder {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return &Feeder{deps: d, log: d.Logger, wake: make(chan struct{}, 1), slots: make(chan struct{}, concurrent)}
}

// Wake makes the feeder look for work now.
func (f *Feeder) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run runs jobs until ctx ends. Those that have not ended continue in another process, or when this one starts
// again.
func (f *Feeder) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.clean(ctx) })
	tick := time.NewTicker(roundPause)
	defer tick.Stop()
	for {
		found, err := f.claim(ctx, cap(f.slots)-len(f.slots))
		if err != nil && ctx.Err() == nil && !f.failed {
			f.log.Warn("looking for batches to run failed; trying again until it works", "error", err)
		}
		f.failed = err != nil
		for _, c := range found {
			f.slots <- struct{}{} // there is room: only this goroutine adds
			wg.Go(func() {
				defer func() {
					<-f.slots
					f.Wake()
				}()
				c.work(ctx)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-f.wake:
		}
	}
}

// clean removes the content of deleted files from time to time.
func (f *Feeder) clean(ctx context.Context) {
	tick := time.NewTicker(cleanPause)
	defer tick.Stop()
	for {
		if err := f.deps.Files.Clean(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("removing the content of deleted files failed; trying again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

const claimSQL = `
UPDATE file_jobs SET lease_owner = $1, lease_until = now() + $2::interval
WHERE (tenant, job_id) IN (SELECT tenant, job_id FROM file_jobs
	WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND next_at <= now() AND (lease_until IS NULL OR lease_until < now())
	ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING ` + columns

// claim takes the lease of up to n jobs that have something to do.
func (f *Feeder) claim(ctx context.Context, n int) ([]*claimed, error) {
	if n <= 0 {
		return nil, nil
	}
	owner := files.NewID("feeder-")
	rows, err := f.deps.Pool.Query(ctx, claimSQL, owner, leaseTime, n)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (*claimed, error) {
		j, err := scan(r)
		if err != nil {
			return nil, err
		}
		return &claimed{f: f, Job: j, owner: owner, log: f.log.With("tenant", j.Tenant, "job_id", j.ID)}, nil
	})
}

// errLost says that another process, or a client, has changed the job: whatever is being done is to stop.
var errLost = errors.New("the batch has changed")

// claimed is a job that this process holds the lease of.
type claimed struct {
	*Job

	f     *Feeder
	owner string
	log   *slog.Logger

	stored *jobs.Stored // once it was read
}

// work does what there is to do now, and gives the lease back.
func (c *claimed) work(ctx context.Context) {
	working, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.renew(working, stop) })
	pause, err := c.step(working)
	lost := context.Cause(working)
	stop(nil)
	wg.Wait()
	switch {
	case errors.Is(err, errLost), errors.Is(lost, errLost):
		pause = 0
	case err != nil && ctx.Err() != nil:
		pause = 0
	case err != nil:
		c.log.Warn("running a batch failed; trying again", "status", c.Status, "error", err)
		pause = retryPause
	}
	// Without the lease, this changes nothing.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err = c.f.deps.Pool.Exec(within, `UPDATE file_jobs SET lease_owner = NULL, lease_until = NULL, next_at = now() + $4::interval WHERE tenant = $1 AND job_id = $2 AND lease_owner = $3`,
		c.Tenant, c.ID, c.owner, pause)
	if err != nil {
		c.log.Warn("giving a batch back failed; it continues once its lease expires", "error", err)
	}
}

// renew renews the lease until ctx ends. It stops the work if the lease is lost, or a client has cancelled the job.
func (c *claimed) renew(ctx context.Context, stop context.CancelCauseFunc) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	until := time.Now().Add(leaseTime)
	before := c.Cancelling != nil
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		began := time.Now()
		within, cancel := context.WithDeadline(ctx, until)
		var cancelling bool
		err := c.f.deps.Pool.QueryRow(within, `UPDATE file_jobs SET lease_until = now() + $4::interval WHERE tenant = $1 AND job_id = $2 AND lease_owner = $3 RETURNING cancelling_at IS NOT NULL`,
			c.Tenant, c.ID, c.owner, leaseTime).Scan(&cancelling)
		cancel()
		switch {
		case errors.Is(err, pgx.ErrNoRows), err == nil && cancelling && !before, err != nil && time.Now().After(until):
			stop(errLost)
			return
		case err == nil:
			until = began.Add(leaseTime)
		}
	}
}

// update changes the row, which requires the lease and the status: of a job that a client has cancelled in the
// meantime, only the cancel counts.
func (c *claimed) update(ctx context.Context, set string, args ...any) error {
	tag, err := c.f.deps.Pool.Exec(ctx, `UPDATE file_jobs SET `+set+` WHERE tenant = $1 AND job_id = $2 AND lease_owner = $3 AND status = $4`,
		append([]any{c.Tenant, c.ID, c.owner, c.Status}, args...)...)
	if err != nil {
		return fmt.Errorf("updating batch %s: %w", c.ID, err)
	}
	if tag.RowsAffected() == 0 {
		return errLost
	}
	return nil
}

// changed records in the audit log that the job has another status.
func (c *claimed) changed(ctx context.Context, to Status, detail map[string]any) {
	e := task.Event{Action: task.JobStatusChanged, Outcome: task.OutcomeOK, Tenant: c.Tenant, ActorType: task.ActorStage, ResourceType: "job", ResourceID: c.ID, JobID: c.ID}
	if detail == nil {
		detail = map[string]any{}
	}
	detail["from"], detail["to"] = c.Status, to
	if err := c.f.deps.Producer.RecordNow(ctx, e, detail); err != nil {
		c.log.Warn("writing an event to Kafka failed; it may be missing in the audit log", "action", e.Action, "error", err)
	}
	c.Status = to
}
