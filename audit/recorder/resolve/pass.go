package resolve

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// HeaderRunAgain marks the record of a task that runs again because its answer was lost.
const HeaderRunAgain = "run-again"

// back lists the topics that hold tasks, with their priorities; a parked task says its own.
var back = []struct {
	topic    string
	priority task.Priority
}{{stream.TasksHigh, task.High}, {stream.TasksNormal, task.Normal}, {stream.TasksLow, task.Low}, {stream.TasksParked, ""}}

// way lists the topics in the order of a task's path, with the stage whose group reads them.
var way = []struct{ topic, stage string }{
	{stream.TasksHigh, "router"}, {stream.TasksNormal, "router"}, {stream.TasksLow, "router"}, {stream.TasksParked, "router"},
	{stream.Assignments, "batcher"}, {stream.Batches, "workers"}, {stream.Results, ""},
}

// rowKey is the place of a row in the index tasks_by_state.
type rowKey struct {
	state, tenant string
	submitted     time.Time
	id            string
}

// place is where a record of a task is, or of another request under its id.
type place struct {
	topic     string
	partition int
	offset    int64
	requeues  int
	again     bool // it has run again already
}

// maxPlaces is how many records under one id a pass remembers.
const maxPlaces = 4

// withPlace adds a place to those of a task: the one that was requeued most often comes first, and of several the
// newest. If there are too many, the newest and the first one stay, because an id belongs to the request that used it first.
func withPlace(all []place, at place) []place {
	i := 0
	for i < len(all) && all[i].requeues > at.requeues {
		i++
	}
	all = slices.Insert(all, i, at)
	if len(all) > maxPlaces {
		all = slices.Delete(all, maxPlaces-1, maxPlaces)
	}
	return all
}

// cursor is where a pass begins because the one before remembered as many tasks as it may.
type cursor struct {
	row      rowKey // after this row of tasks
	rowsDone bool
	record   scanned // from this record on
	scanDone bool
}

// scanned is a place in the order in which the topics of tasks are read.
type scanned struct {
	topic, partition int
	offset           int64
}

func (s scanned) before(o scanned) bool {
	return cmp.Or(cmp.Compare(s.topic, o.topic), cmp.Compare(s.partition, o.partition), cmp.Compare(s.offset, o.offset)) < 0
}

// pass is one look at Kafka and Postgres.
type pass struct {
	*Resolver
	from, next cursor

	recorded map[int]int64 // offsets of the recorder in results
	stands   map[string][]stream.PartitionOffsets
	tails    map[string][]stream.PartitionOffsets

	ended map[task.Run]*task.Task       // that only the log knows; set before the pass
	rows  map[task.Run]*task.Task       // unfinished, according to Postgres, and not seen in Kafka
	seen  map[task.Run]*task.Task       // the same, of which there is a record, perhaps of another request
	open  map[task.Run][]place          // without a result
	batch map[task.Run][]place          // to be looked up
	bound map[task.Run]task.Fingerprint // of those without a result: the requests that their ids belong to, as far as Postgres knows
	upTo  scanned                       // after the last record that was considered
	full  bool                          // open has as many as it may

	ran, failed, underway int
}

// run makes the pass. next is where another one has to begin; nil if there is nothing more.
func (p *pass) run(ctx context.Context) (next *cursor, err error) {
	p.next = cursor{rowsDone: true, scanDone: true}
	p.stands, p.tails = map[string][]stream.PartitionOffsets{}, map[string][]stream.PartitionOffsets{}
	p.open, p.batch, p.bound = map[task.Run][]place{}, map[task.Run][]place{}, map[task.Run]task.Fingerprint{}
	for _, step := range []func(context.Context) error{p.readRows, p.readOffsets, p.readTasks, p.readWaiting, p.readWay, p.readDead, p.settle} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if p.next.rowsDone && p.next.scanDone {
		return nil, nil
	}
	return &p.next, nil
}

// readRows reads the unfinished tasks that Postgres knows, a page of them.
func (p *pass) readRows(ctx context.Context) error {
	p.rows, p.seen = map[task.Run]*task.Task{}, map[task.Run]*task.Task{}
	maps.Copy(p.rows, p.ended)
	if p.from.rowsDone {
		return nil
	}
	rows, err := p.Pool.Query(ctx, `SELECT state, tenant, submitted_at, task_id, generation, coalesce(model, ''), coalesce(endpoint, ''), coalesce(priority, ''),
			coalesce(job_id, ''), coalesce(custom_id, ''), coalesce(trace_id, ''), coalesce(callback_url, '')
		FROM tasks WHERE state IN ('PENDING', 'ASSIGNED', 'RUNNING') AND (state, tenant, submitted_at, task_id) > ($1, $2, $3, $4)
		ORDER BY state, tenant, submitted_at, task_id LIMIT $5`, p.from.row.state, p.from.row.tenant, p.from.row.submitted, p.from.row.id, p.max)
	if err != nil {
		return fmt.Errorf("reading unfinished tasks: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		t := &task.Task{Progress: &task.Progress{}}
		var state, url string
		if err := rows.Scan(&state, &t.Tenant, &t.SubmittedAt, &t.ID, &t.Progress.Generation, &t.Model, &t.Endpoint, &t.Priority, &t.JobID, &t.CustomID, &t.TraceID, &url); err != nil {
			return fmt.Errorf("reading unfinished tasks: %w", err)
		}
		if url != "" {
			t.Callback = &task.Callback{URL: url}
		}
		p.rows[t.Run()] = t
		p.next.row, p.next.rowsDone = rowKey{state, t.Tenant, t.SubmittedAt, t.ID}, len(p.rows) < p.max
	}
	return rows.Err()
}

// readOffsets reads all offsets, in the order that misses no task: see the package comment. While a transaction
// is open, a task may be behind it, so it fails: nothing is known to be lost.
func (p *pass) readOffsets(ctx context.Context) error {
	p.recorded = map[int]int64{}
	rows, err := p.Pool.Query(ctx, "SELECT partition, next_offset FROM stream_offsets WHERE topic = $1", stream.Results)
	if err != nil {
		return fmt.Errorf("reading how far results are recorded: %w", err)
	}
	var partition int
	var next int64
	if _, err = pgx.ForEachRow(rows, []any{&partition, &next}, func() error { p.recorded[partition] = next; return nil }); err != nil {
		return fmt.Errorf("reading how far results are recorded: %w", err)
	}
	for _, w := range way {
		if p.stands[w.topic], err = p.offsetsOf(ctx, w.stage, w.topic); err != nil {
			return err
		}
	}
	for _, b := range back {
		if p.tails[b.topic], err = p.offsetsOf(ctx, "", b.topic); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) offsetsOf(ctx context.Context, stage, topic string) ([]stream.PartitionOffsets, error) {
	all, err := p.Log.Offsets(ctx, stage, topic)
	if err == nil {
		err = stream.CheckReadable(topic, all)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the offsets of topic %s: %w", topic, err)
	}
	return all, nil
}

// readTasks reads the topics of tasks: what the routers have finished and what has no result is open.
func (p *pass) readTasks(ctx context.Context) error {
	for i, b := range back {
		for j := range p.stands[b.topic] {
			s := &p.stands[b.topic][j]
			err := p.Log.ScanRange(ctx, b.topic, s.Partition, s.First, s.End, func(r *stream.Record) error {
				t := taskOf(r, b.priority)
				if t == nil || s.Unfinished(r.Offset) {
					return nil
				}
				if row := p.rows[t.Run()]; row != nil {
					p.seen[t.Run()] = row
					delete(p.rows, t.Run())
				}
				return p.consider(ctx, t.Run(), scanned{i, j, r.Offset}, place{b.topic, r.Partition, r.Offset, t.Requeues(), isAgain(r)})
			})
			if err != nil {
				return fmt.Errorf("reading topic %s: %w", b.topic, err)
			}
		}
	}
	return p.lookUp(ctx)
}

// isAgain reports whether the record of a task was written to run it again.
func isAgain(r *stream.Record) bool { return r.Ours() && r.Header(HeaderRunAgain) != "" }

// readWaiting finds the tasks that the routers have not finished, and the copies that were written
// meanwhile.
func (p *pass) readWaiting(ctx context.Context) error {
	for _, b := range back {
		for i := range p.tails[b.topic] {
			tail, from := &p.tails[b.topic][i], int64(0)
			var s *stream.PartitionOffsets
			if i < len(p.stands[b.topic]) {
				s = &p.stands[b.topic][i]
				from = s.Committed()
			}
			from = max(from, tail.First)
			if from >= tail.End {
				continue
			}
			err := p.Log.ScanRange(ctx, b.topic, tail.Partition, from, tail.End, func(r *stream.Record) error {
				if s != nil && r.Offset < s.End && !s.Unfinished(r.Offset) {
					return nil
				}
				if t := taskOf(r, b.priority); t != nil {
					if isAgain(r) {
						p.underway++
					}
					p.found(t.Run())
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("reading topic %s: %w", b.topic, err)
			}
		}
	}
	return nil
}

// taskOf returns the task of a record, as the routers read it; nil if they make a dead letter of it.
func taskOf(r *stream.Record, priority task.Priority) *task.Task {
	decode := wire.DecodeTask
	if r.Ours() {
		decode = wire.DecodeOwnTask
	} else if priority == "" {
		return nil // parked by no router
	}
	t, err := decode(r.Value, r.Header(wire.HeaderContentType))
	if err != nil {
		return nil
	}
	if t.ID == "" {
		t.ID = records.TaskID(r)
	}
	if priority != "" {
		t.Priority = priority
	}
	t.Normalize(r.Time)
	return t
}

// lookUpBatch is how many tasks are looked up at a time.
const lookUpBatch = 1000

// consider looks up whether a task has a result, together with others.
func (p *pass) consider(ctx context.Context, k task.Run, nth scanned, at place) error {
	if have, ok := p.open[k]; ok {
		p.open[k] = withPlace(have, at)
		return nil
	}
	if p.full || p.from.scanDone || nth.before(p.from.record) {
		return nil
	}
	p.upTo = scanned{nth.topic, nth.partition, nth.offset + 1}
	p.batch[k] = withPlace(p.batch[k], at)
	if len(p.batch) < lookUpBatch {
		return nil
	}
	return p.lookUp(ctx)
}

const unansweredSQL = `SELECT u.tenant, u.task_id, u.generation, t.fingerprint FROM unnest($1::text[], $2::text[], $3::integer[]) AS u (tenant, task_id, generation)
LEFT JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id
WHERE NOT EXISTS (SELECT FROM results r WHERE r.tenant = u.tenant AND r.task_id = u.task_id AND r.generation >= u.generation)`

func (p *pass) lookUp(ctx context.Context) error {
	if len(p.batch) == 0 {
		return nil
	}
	tenants, ids, generations := make([]string, 0, len(p.batch)), make([]string, 0, len(p.batch)), make([]int, 0, len(p.batch))
	for k := range p.batch {
		tenants, ids, generations = append(tenants, k.Tenant), append(ids, k.ID), append(generations, k.Generation)
	}
	rows, err := p.Pool.Query(ctx, unansweredSQL, tenants, ids, generations)
	if err != nil {
		return fmt.Errorf("looking for results: %w", err)
	}
	var k task.Run
	var bound []byte
	_, err = pgx.ForEachRow(rows, []any{&k.Tenant, &k.ID, &k.Generation, &bound}, func() error {
		var f task.Fingerprint
		copy(f[:], bound)
		p.bound[k] = f
		if p.open[k] = p.batch[k]; len(p.open) >= p.max {
			p.full = true // by a batch at most
		}
		return nil
	})
	if p.full {
		p.next.record, p.next.scanDone = p.upTo, false
	}
	if err != nil {
		return fmt.Errorf("looking for results: %w", err)
	}
	clear(p.batch)
	return nil
}

// found notes that a task is somewhere.
func (p *pass) found(k task.Run) {
	delete(p.rows, k)
	if places, ok := p.open[k]; ok {
		if slices.ContainsFunc(places, func(at place) bool { return at.again }) {
			p.underway++
		}
		delete(p.open, k)
	}
}

// readWay finds the tasks in unfinished assignments and batches, and in results that are not recorded.
func (p *pass) readWay(ctx context.Context) error {
	for _, topic := range []string{stream.Assignments, stream.Batches, stream.Results} {
		for i := range p.stands[topic] {
			s := &p.stands[topic][i]
			from := s.Committed()
			if topic == stream.Results {
				from = max(s.First, p.recorded[s.Partition])
			}
			if from >= s.End {
				continue
			}
			err := p.Log.ScanRange(ctx, topic, s.Partition, from, s.End, func(r *stream.Record) error {
				if !r.Ours() || topic != stream.Results && !s.Unfinished(r.Offset) {
					return nil
				}
				for _, k := range runsOf(topic, r) {
					p.found(k)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("reading topic %s: %w", topic, err)
			}
		}
	}
	return nil
}

// readDead finds the tasks that an operator has to decide about. A dead letter whose id belongs to another
// request says nothing of the task that the id belongs to.
func (p *pass) readDead(ctx context.Context) error {
	err := p.Log.Scan(ctx, stream.DLQ, func(r *stream.Record) error {
		if !r.Ours() || r.Header(records.HeaderDLQReason) == records.ReasonIDReused {
			return nil
		}
		for _, k := range runsOf(r.Header(records.HeaderDLQTopic), r) {
			p.found(k)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading topic %s: %w", stream.DLQ, err)
	}
	return nil
}

// runsOf returns the tasks in a record of a topic, or in its dead letter; nil if it is unreadable.
func runsOf(topic string, r *stream.Record) (runs []task.Run) {
	switch topic {
	case stream.Assignments:
		as, _ := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, r.Value) // nil if it is unreadable
		for i := range as {
			runs = append(runs, as[i].Task.Run())
		}
	case stream.Batches:
		bs, _ := wire.DecodeFrame[task.Batch](wire.FrameBatches, r.Value)
		for i := range bs {
			for j := range bs[i].Assignments {
				runs = append(runs, bs[i].Assignments[j].Task.Run())
			}
		}
	case stream.Results:
		if res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType)); err == nil {
			runs = append(runs, res.Run())
		}
	default:
		if t, err := wire.DecodeOwnTask(r.Value, r.Header(wire.HeaderContentType)); err == nil {
			t.Normalize(r.Time)
			runs = append(runs, t.Run())
		}
	}
	return runs
}
