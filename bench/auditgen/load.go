package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/task"
)

// loadOptions are the options of load; main.go explains them.
type loadOptions struct {
	URL        string
	Rows       int64
	Days       int
	Partitions int
	Workers    int
	Seed       uint64
	Now        time.Time
	Out        io.Writer
}

// rowsOfTask is the measured average number of audit rows per task.
const rowsOfTask = 7.17

// copyBytes is the approximate size of one COPY.
const copyBytes = 4 << 20

// load fills an empty database with made-up rows.
func load(ctx context.Context, o loadOptions) error {
	if o.Rows < 1 || o.Days < 1 || o.Partitions < 1 || o.Workers < 1 {
		return errors.New("rows, days, partitions and workers must be at least 1")
	}
	conn, err := pgx.Connect(ctx, o.URL)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := migrations.Check(ctx, conn); err != nil {
		return err
	}
	var used bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_log) OR EXISTS (SELECT FROM tasks)").Scan(&used); err != nil {
		return fmt.Errorf("checking that the database is empty: %w", err)
	}
	if used {
		return errors.New("the database already contains rows: use an empty database")
	}
	start := time.Now()
	first := o.Now.AddDate(0, 0, -o.Days).Truncate(24 * time.Hour)
	for day := first; !day.After(o.Now); day = day.AddDate(0, 0, 1) {
		if _, err := conn.Exec(ctx, "SELECT batchyard_make_audit_partition($1::date)", day.Format(time.DateOnly)); err != nil {
			return fmt.Errorf("creating the partition of %s: %w", day.Format(time.DateOnly), err)
		}
	}
	saved, err := dropIndexes(ctx, conn)
	if err != nil {
		return err
	}
	made, err := fill(ctx, o, first)
	if err != nil {
		return err
	}
	took := time.Since(start)
	fmt.Fprintf(o.Out, "%d audit rows in %s: %.0f rows/s, with their tasks, results, callbacks and rollups\n", made, took.Round(time.Millisecond), float64(made)/took.Seconds())
	if err := makeIndexes(ctx, conn, saved, o.Out); err != nil {
		return err
	}
	return sizes(ctx, conn, o.Out)
}

// fill generates the rows day by day, so that rows of different Kafka partitions
// are interleaved in the table, as a recorder would leave them.
func fill(ctx context.Context, o loadOptions, first time.Time) (made int64, err error) {
	makers, conns := make([]*maker, o.Partitions), make([]*pgx.Conn, o.Partitions)
	for p := range makers {
		if conns[p], err = pgx.Connect(ctx, o.URL); err != nil {
			return 0, fmt.Errorf("connecting to Postgres: %w", err)
		}
		defer func() { _ = conns[p].Close(context.WithoutCancel(ctx)) }()
		makers[p] = &maker{
			r: rand.New(rand.NewPCG(o.Seed, uint64(p))), now: o.Now,
			events: recorder.NewBulk("events", p), results: recorder.NewBulk("results", p),
			tasks: newRows("tasks", taskWidth, taskColumns), ended: newRows("results", resultWidth, resultColumns),
			hooks: newRows("callbacks", callbackWidth, callbackColumns), example: p == 0, jobs: map[[2]string]time.Time{},
		}
	}
	tasks := float64(o.Rows) / rowsOfTask
	begin := time.Now()
	for day := first; !day.After(o.Now); day = day.AddDate(0, 0, 1) {
		from, span := day, min(24*time.Hour, o.Now.Sub(day))
		share := tasks * span.Seconds() / o.Now.Sub(first).Seconds() / float64(o.Partitions)
		var all sync.WaitGroup
		errs, turns := make([]error, len(makers)), make(chan struct{}, o.Workers)
		for p, m := range makers {
			all.Go(func() {
				turns <- struct{}{}
				errs[p] = m.day(ctx, conns[p], dayPlan{from: from, span: span, tasks: int(share), first: day.Equal(first)})
				<-turns
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return 0, fmt.Errorf("generating the rows of %s: %w", day.Format(time.DateOnly), err)
		}
		made = 0
		for _, m := range makers {
			made += m.made
			if m != makers[0] {
				makers[0].events.Absorb(m.events)
			}
		}
		if err := pgx.BeginFunc(ctx, conns[0], func(tx pgx.Tx) error { return makers[0].events.Count(ctx, tx) }); err != nil {
			return 0, err
		}
		fmt.Fprintf(o.Out, "%s: %d rows, %.0f rows/s\n", day.Format(time.DateOnly), made, float64(made)/time.Since(begin).Seconds())
	}
	if err := writeJobs(ctx, conns[0], makers); err != nil {
		return 0, err
	}
	for p, m := range makers {
		err := pgx.BeginFunc(ctx, conns[p], func(tx pgx.Tx) error {
			return errors.Join(m.events.Finish(ctx, tx), m.results.Finish(ctx, tx))
		})
		if err != nil {
			return 0, err
		}
	}
	return made, nil
}

// writeJobs writes the rows of all jobs, as if no job had been announced.
func writeJobs(ctx context.Context, conn *pgx.Conn, makers []*maker) error {
	first := map[[2]string]time.Time{}
	for _, m := range makers {
		for k, at := range m.jobs {
			if have, ok := first[k]; !ok || at.Before(have) {
				first[k] = at
			}
		}
	}
	const columns = 17 // of audit.JobColumns
	r, m := newRows("jobs", columns, audit.JobColumns), makers[0]
	for k, at := range first {
		r.begin()
		r.text(k[0], k[1], "", "", "", "", "", "", "", "", "")
		r.times(at)
		r.text("", "", "")
		r.int4(0)
		r.text("")
		m.events.Wrote(audit.DigestRow(audit.JobRows, 1, r.fields()))
	}
	m.commit = m.now.Truncate(time.Microsecond)
	m.block = append(m.block, task.Event{Time: m.commit, Action: task.RowsRecorded, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: m.instance("audit")})
	m.mix()
	if err := m.flush(ctx, conn, 0); err != nil {
		return err
	}
	return r.flush(ctx, conn, 0)
}

// dayPlan is what to generate for one partition and day.
type dayPlan struct {
	from  time.Time
	span  time.Duration
	tasks int
	first bool // the first day, on which the devices join
}

// day generates the rows of one partition for one day.
func (m *maker) day(ctx context.Context, conn *pgx.Conn, d dayPlan) error {
	blocks := max(1, d.tasks/blockTasks)
	each := d.span / time.Duration(blocks)
	m.commit = d.from.Add(each).Truncate(time.Microsecond) // of the first block
	if m.example {
		if d.first {
			m.joinDevices(d.from)
		}
		m.devices(d.from)
		if m.now.Sub(d.from) < 72*time.Hour && m.now.Sub(d.from) > 48*time.Hour {
			m.one(d.from.Add(d.span/2), exampleTask)
		}
	}
	for b := range blocks {
		n := d.tasks/blocks + min(1, max(0, d.tasks%blocks-b)) // the remainder goes to the first blocks
		at := d.from.Add(time.Duration(b) * each)
		m.commit = at.Add(each).Truncate(time.Microsecond)
		for i := range n {
			when := at.Add(time.Duration(float64(each) * (float64(i) + m.r.Float64()) / float64(n))).Truncate(time.Microsecond)
			m.one(when, m.id(when))
		}
		m.beside(at, each)
		m.mix()
		if err := m.flush(ctx, conn, copyBytes); err != nil {
			return err
		}
	}
	return m.flush(ctx, conn, 0)
}

func (m *maker) flush(ctx context.Context, conn *pgx.Conn, above int) error {
	for _, b := range []*recorder.Bulk{m.events, m.results} {
		if b.Size() > above {
			if err := b.Flush(ctx, conn, "audit_log"); err != nil {
				return err
			}
		}
	}
	return errors.Join(m.tasks.flush(ctx, conn, above), m.ended.flush(ctx, conn, above), m.hooks.flush(ctx, conn, above))
}
