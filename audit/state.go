package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// The latest state of a task is what remains when everything known of it is
// merged, and merging gives the same in any order and any grouping:
//
//	state, attempt, device, model, error   of the highest (sequence, time); a result is above all
//	assigned_at, started_at                the latest
//	submitted_at                           of the best source: acceptance, result, or the first event
//	priority                               the result's, else of the last change, else the first
//	endpoint, job, …                       the first that is not empty
//
// A change of priority is an update of its own: its event follows that of the
// acceptance in the same partition, so the row is there.
//
// So events and results may come interleaved in any way, late or early, and be
// collapsed within a chunk: [merge] and upsertSQL say the same thing twice.

// Sources of what a row of tasks begins with, the better ones higher.
const (
	fromEvent    = 0
	fromResult   = 1
	fromAccepted = 2
)

// state is what a chunk knows of one task.
type state struct {
	key      task.Key
	state    task.State
	seq      int32
	attempt  int32
	device   string
	model    string
	class    string
	message  string
	at       time.Time // of the state
	finished time.Time

	assigned, started time.Time

	from      int16
	submitted time.Time
	deadline  time.Time
	endpoint  string
	priority  string
	job       string
	customID  string
	traceID   string
	callback  string
}

// stateOfEvent puts into s what an event tells of the state of its task; ok is
// false when it tells nothing.
func stateOfEvent(e *task.Event, s *state) (ok bool) {
	info, ok := e.Action.Info()
	if !ok || info.State == "" || e.TaskID == "" {
		return false
	}
	*s = state{
		key: e.Key(), state: info.State, seq: int32(task.Sequence(info.State, e.Attempt)), attempt: int32(e.Attempt),
		model: e.Model, class: string(e.ErrorClass), at: e.Time, from: fromEvent, submitted: e.Time,
		deadline: e.Deadline, endpoint: e.Endpoint, priority: string(e.Priority),
		job: e.Job, customID: e.CustomID, traceID: e.TraceID, callback: e.CallbackURL,
	}
	switch info.State {
	case task.Assigned:
		s.device, s.assigned = e.Device, e.Time
	case task.Running:
		s.device, s.started = e.Device, e.Time
	}
	if e.Action == task.TaskAccepted {
		s.from = fromAccepted
		if !e.SubmittedAt.IsZero() {
			s.submitted = e.SubmittedAt
		}
	}
	return true
}

// stateOfResult is the end of a task. Only the result that was taken has one.
func stateOfResult(r *task.Result) state {
	s := state{
		key: r.Key(), state: r.State, seq: task.TerminalSequence, attempt: int32(r.Attempt()),
		device: r.Device, model: r.Model, at: r.FinishedAt, finished: r.FinishedAt,
		assigned: r.AssignedAt, started: r.StartedAt,
		from: fromEvent, submitted: r.FinishedAt,
		endpoint: r.Endpoint, priority: string(r.Priority), job: r.Job, customID: r.CustomID, traceID: r.TraceID,
	}
	if !r.SubmittedAt.IsZero() {
		s.from, s.submitted = fromResult, r.SubmittedAt
	}
	if r.Callback != nil {
		s.callback = r.Callback.URL
	}
	if r.Error != nil {
		s.class, s.message = string(r.Error.Class), r.Error.Message
	}
	return s
}

// merge adds to s what n knows; n was recorded later.
func (s *state) merge(n *state) {
	if n.seq > s.seq || n.seq == s.seq && n.at.After(s.at) {
		s.state, s.seq, s.attempt, s.at, s.finished = n.state, n.seq, n.attempt, n.at, n.finished
		s.device, s.model, s.class, s.message = n.device, n.model, n.class, n.message
	}
	s.assigned, s.started = later(s.assigned, n.assigned), later(s.started, n.started)
	if n.from > s.from || n.from == fromEvent && s.from == fromEvent && n.submitted.Before(s.submitted) {
		s.from, s.submitted = n.from, n.submitted
	}
	if s.deadline.IsZero() {
		s.deadline = n.deadline
	}
	s.endpoint = cmp.Or(s.endpoint, n.endpoint)
	if n.seq == task.TerminalSequence { // it may have been changed on its way
		s.priority = cmp.Or(n.priority, s.priority)
	} else {
		s.priority = cmp.Or(s.priority, n.priority)
	}
	s.job = cmp.Or(s.job, n.job)
	s.customID = cmp.Or(s.customID, n.customID)
	s.traceID = cmp.Or(s.traceID, n.traceID)
	s.callback = cmp.Or(s.callback, n.callback)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// stateFields are the columns of tasks in the order of taskRowType.
const stateFields = `tenant, task_id, state, seq, attempt, device_id, model, error_class, error_message, updated_at, finished_at,
	assigned_at, started_at, known_from, submitted_at, deadline, endpoint, priority, job_id, custom_id, trace_id, callback_url`

const stateWidth = 22 // of them

// copyStatesSQL fails when one of them is there.
const copyStatesSQL = `COPY tasks (` + stateFields + `) FROM STDIN (FORMAT binary)`

// upsertSQL merges the states of a chunk into the table; see [state.merge]. A
// row that would stay as it is, is not written.
const upsertSQL = `
INSERT INTO tasks AS t (` + stateFields + `)
SELECT * FROM unnest($1::` + taskRowType + `[])
ON CONFLICT (tenant, task_id) DO UPDATE SET
	state         = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.state ELSE t.state END,
	attempt       = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.attempt ELSE t.attempt END,
	device_id     = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.device_id ELSE t.device_id END,
	model         = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.model ELSE t.model END,
	error_class   = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.error_class ELSE t.error_class END,
	error_message = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.error_message ELSE t.error_message END,
	finished_at   = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.finished_at ELSE t.finished_at END,
	updated_at    = CASE WHEN (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at) THEN excluded.updated_at ELSE t.updated_at END,
	seq           = greatest(t.seq, excluded.seq),
	assigned_at   = greatest(t.assigned_at, excluded.assigned_at),
	started_at    = greatest(t.started_at, excluded.started_at),
	submitted_at  = CASE WHEN excluded.known_from > t.known_from THEN excluded.submitted_at
	                     WHEN excluded.known_from = 0 AND t.known_from = 0 THEN least(t.submitted_at, excluded.submitted_at)
	                     ELSE t.submitted_at END,
	known_from    = greatest(t.known_from, excluded.known_from),
	deadline      = coalesce(t.deadline, excluded.deadline),
	endpoint      = coalesce(t.endpoint, excluded.endpoint),
	priority      = CASE WHEN excluded.seq = 2147483647 THEN coalesce(excluded.priority, t.priority) ELSE coalesce(t.priority, excluded.priority) END,
	job_id        = coalesce(t.job_id, excluded.job_id),
	custom_id     = coalesce(t.custom_id, excluded.custom_id),
	trace_id      = coalesce(t.trace_id, excluded.trace_id),
	callback_url  = coalesce(t.callback_url, excluded.callback_url),
	version       = t.version + 1
WHERE (excluded.seq, excluded.updated_at) > (t.seq, t.updated_at)
	OR excluded.known_from > t.known_from
	OR excluded.known_from = 0 AND t.known_from = 0 AND excluded.submitted_at < t.submitted_at
	OR greatest(t.assigned_at, excluded.assigned_at) IS DISTINCT FROM t.assigned_at
	OR greatest(t.started_at, excluded.started_at) IS DISTINCT FROM t.started_at
	OR t.job_id IS NULL AND excluded.job_id IS NOT NULL
	OR t.endpoint IS NULL AND excluded.endpoint IS NOT NULL
	OR t.priority IS NULL AND excluded.priority IS NOT NULL
	OR t.custom_id IS NULL AND excluded.custom_id IS NOT NULL
	OR t.deadline IS NULL AND excluded.deadline IS NOT NULL
	OR t.trace_id IS NULL AND excluded.trace_id IS NOT NULL
	OR t.callback_url IS NULL AND excluded.callback_url IS NOT NULL`

// states collapses what a chunk tells to one state a task.
type states struct {
	byKey map[task.Key]*state
	all   []*state
	slab  []state                    // room for the next ones
	ranks map[task.Key]task.Priority // the last change of each
}

func newStates(n int) *states { return &states{byKey: make(map[task.Key]*state, n)} }

func (s *states) add(n *state) {
	if have, ok := s.byKey[n.key]; ok {
		have.merge(n)
		return
	}
	if len(s.slab) == 0 {
		s.slab = make([]state, min(max(len(s.all), 4), 128))
	}
	kept := &s.slab[0]
	s.slab = s.slab[1:]
	*kept = *n
	s.byKey[n.key] = kept
	s.all = append(s.all, kept)
}

// rank takes a change of priority; a task that has ended keeps the one that it ran with.
func (s *states) rank(e *task.Event) {
	if e.Action != task.TaskReprioritized || e.Outcome != task.OutcomeOK || e.TaskID == "" || e.Priority == "" {
		return
	}
	if s.ranks == nil {
		s.ranks = map[task.Key]task.Priority{}
	}
	s.ranks[e.Key()] = e.Priority
}

// rankSQL may meet another recorder that holds one of these rows and wants one
// of ours; Postgres then ends one of the two, which tries again.
const rankSQL = `
UPDATE tasks t SET priority = u.priority, version = t.version + 1
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (tenant, task_id, priority)
WHERE t.tenant = u.tenant AND t.task_id = u.task_id AND t.finished_at IS NULL AND t.priority IS DISTINCT FROM u.priority`

// queueRanks adds the changes of priority to a batch, behind the upsert.
func (s *states) queueRanks(b *pgx.Batch) {
	if len(s.ranks) == 0 {
		return
	}
	var tenants, ids, priorities []string
	for k, p := range s.ranks {
		tenants, ids, priorities = append(tenants, k.Tenant), append(ids, k.ID), append(priorities, string(p))
	}
	b.Queue(rankSQL, tenants, ids, priorities)
}

// copyNew writes by a shortcut the tasks that begin and end in the chunk, if there
// are many, as behind a backlog. They were accepted in it and their results are the first:
// most likely nothing of them was recorded before. The others are left for queue.
func (s *states) copyNew(ctx context.Context, tx pgx.Tx, a *rowBuffer) error {
	begun := slices.DeleteFunc(slices.Clone(s.all), func(r *state) bool { return !r.whole() })
	if len(begun) < copyFrom {
		return nil
	}
	sortStates(begun)
	a.copy(stateWidth)
	for _, r := range begun {
		a.state(r)
	}
	if err := copyIn(ctx, tx, copyStatesSQL, len(begun), a.fields.endCopy()); err != nil {
		return fmt.Errorf("writing the states of %d tasks: %w", len(begun), err)
	}
	s.all = slices.DeleteFunc(s.all, (*state).whole)
	return nil
}

// whole reports whether the chunk holds the acceptance of the task and its end.
func (s *state) whole() bool { return s.from == fromAccepted && s.seq == task.TerminalSequence }

// sortStates puts them in the order of their keys, so that two recorders that write the
// same tasks wait for each other and never in a circle. When both copy and insert, they
// may all the same: then Postgres ends one of the two, which tries again.
func sortStates(all []*state) {
	slices.SortFunc(all, func(x, y *state) int {
		return cmp.Or(cmp.Compare(x.key.Tenant, y.key.Tenant), cmp.Compare(x.key.ID, y.key.ID))
	})
}

// queue adds the upsert to a batch.
func (s *states) queue(b *pgx.Batch, a *rowBuffer, element uint32) {
	if len(s.all) == 0 {
		return
	}
	sortStates(s.all)
	a.array(stateWidth)
	for _, r := range s.all {
		a.state(r)
	}
	b.Queue(upsertSQL, a.end(element))
}

// state adds a row of taskRowType.
func (a *rowBuffer) state(s *state) {
	a.begin()
	a.text(s.key.Tenant)
	a.text(s.key.ID)
	a.text(string(s.state))
	a.int4(s.seq)
	a.int4(s.attempt)
	a.textOr(s.device)
	a.textOr(s.model)
	a.textOr(s.class)
	a.textOr(s.message)
	a.timeOr(s.at)
	a.timeOr(s.finished)
	a.timeOr(s.assigned)
	a.timeOr(s.started)
	a.int2(s.from)
	a.timeOr(s.submitted)
	a.timeOr(s.deadline)
	a.textOr(s.endpoint)
	a.textOr(s.priority)
	a.textOr(s.job)
	a.textOr(s.customID)
	a.textOr(s.traceID)
	a.textOr(s.callback)
}

// flush sends a batch within the transaction and returns the first error.
func flush(ctx context.Context, tx pgx.Tx, b *pgx.Batch, doing string) error {
	if b.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
