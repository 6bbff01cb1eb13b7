// Package states merges what the events and results of a chunk say about tasks, and writes it to the table tasks.
package states

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// The latest state of a task is the merge of everything that is known of it. The merge gives the
// same result in any order and any grouping, so events and results may arrive interleaved, late or
// early, and are merged within a chunk before they reach Postgres:
//
//	state, attempt, device, model, error   of the highest (generation, sequence, time); a result has the
//	                                       highest sequence of its generation
//	assigned_at, started_at                the latest of the highest generation
//	deadline                               the first of the highest generation
//	submitted_at                           of the best source: acceptance, result, or the first event
//	priority                               the result's, else of the last change, else the first
//	endpoint, job, …                       the first that is not empty
//	tokens                                 the result's
//
// [State.merge] and upsertSQL must say the same. A change of priority is an update apart: its event
// follows the acceptance in the same partition, so the row exists.

// Sources of what a row of tasks begins with (known_from); a better source has a higher number.
const (
	fromEvent    = 0
	fromResult   = 1
	fromAccepted = 2
)

// State is what a chunk knows of one task.
type State struct {
	key      task.Key
	gen      int32 // generation
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
	usage     task.Usage // of the result

	fingerprint []byte // nil: not known
}

// BoundBy returns the fingerprint to which an event binds the id of its task. Only the routers decide,
// as they let a record in or end it: of two requests under one id, both may have been accepted.
func BoundBy(e *task.Event) []byte {
	switch e.Action {
	case task.TaskQueued, task.TaskReread, task.TaskDuplicate, task.TaskCancelled, task.TaskRetried:
		return e.Fingerprint
	}
	return nil
}

// maxMessage bounds the message of an event, in bytes.
const maxMessage = 1024

// OfEvent sets s to what an event says about the state of its task. ok is false if that is
// nothing.
func OfEvent(e *task.Event, s *State) (ok bool) {
	info, ok := e.Action.Info()
	if !ok || e.TaskID == "" {
		return false
	}
	bound := BoundBy(e)
	if info.State == "" {
		if bound == nil {
			return false
		}
		info.State = task.Pending // the lowest: all that the event adds is the fingerprint
	}
	*s = State{
		key: e.Key(), gen: int32(e.Generation), state: info.State, seq: int32(task.Sequence(info.State, e.Attempt)), attempt: int32(e.Attempt),
		model: e.Model, class: string(e.ErrorClass), at: e.Time, from: fromEvent, submitted: e.Time,
		deadline: e.Deadline, endpoint: e.Endpoint, priority: string(e.Priority),
		job: e.JobID, customID: e.CustomID, traceID: e.TraceID, callback: e.CallbackURL, fingerprint: bound,
	}
	switch info.State {
	case task.Assigned:
		s.device, s.assigned = e.DeviceID, e.Time
	case task.Running:
		s.device, s.started = e.DeviceID, e.Time
	}
	if e.Action == task.TaskRequeued && e.ErrorClass != "" {
		var d struct{ Message string }
		_ = json.Unmarshal(e.Detail, &d) // the class is enough
		s.message = pg.Truncate(d.Message, maxMessage)
	}
	if e.Action == task.TaskAccepted {
		s.from = fromAccepted
		if !e.SubmittedAt.IsZero() {
			s.submitted = e.SubmittedAt
		}
	}
	return true
}

// OfResult returns the final state of a task. It must not be used for a duplicate.
func OfResult(r *task.Result) State {
	s := State{
		key: r.Key(), gen: int32(r.Generation), state: r.State, seq: task.TerminalSequence, attempt: int32(r.Attempt()),
		device: r.DeviceID, model: r.Model, at: r.FinishedAt, finished: r.FinishedAt,
		assigned: r.AssignedAt, started: r.StartedAt,
		from: fromEvent, submitted: r.FinishedAt,
		endpoint: r.Endpoint, priority: string(r.Priority), job: r.JobID, customID: r.CustomID, traceID: r.TraceID, usage: r.Usage,
		fingerprint: r.Request().Bytes(),
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

// merge adds what n knows to s; n was recorded later.
func (s *State) merge(n *State) {
	if n.gen > s.gen || n.gen == s.gen && (n.seq > s.seq || n.seq == s.seq && n.at.After(s.at)) {
		s.state, s.seq, s.attempt, s.at, s.finished = n.state, n.seq, n.attempt, n.at, n.finished
		s.device, s.model, s.class, s.message, s.usage = n.device, n.model, n.class, n.message, n.usage
	}
	switch {
	case n.gen > s.gen:
		s.gen, s.assigned, s.started, s.deadline = n.gen, n.assigned, n.started, n.deadline
	case n.gen == s.gen:
		s.assigned, s.started = later(s.assigned, n.assigned), later(s.started, n.started)
		if s.deadline.IsZero() {
			s.deadline = n.deadline
		}
	}
	if n.from > s.from || n.from == fromEvent && s.from == fromEvent && n.submitted.Before(s.submitted) {
		s.from, s.submitted = n.from, n.submitted
	}
	s.endpoint = cmp.Or(s.endpoint, n.endpoint)
	if n.seq == task.TerminalSequence { // the priority may have been changed meanwhile
		s.priority = cmp.Or(n.priority, s.priority)
	} else {
		s.priority = cmp.Or(s.priority, n.priority)
	}
	s.job = cmp.Or(s.job, n.job)
	s.customID = cmp.Or(s.customID, n.customID)
	s.traceID = cmp.Or(s.traceID, n.traceID)
	s.callback = cmp.Or(s.callback, n.callback)
	if s.fingerprint == nil {
		s.fingerprint = n.fingerprint
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Width is the number of fields of a row.
const Width = 26

// RowType is the composite type of the schema whose arrays carry states.
const RowType = "batchyard_task_row"

// RequestConstraint is the constraint that fails if a result answers another request than the one that the id
// belongs to.
const RequestConstraint = "tasks_answers_its_request"

// CopySQL fails if a task has a row.
const CopySQL = `COPY tasks (` + audit.TaskColumns + `) FROM STDIN (FORMAT binary)`

// returning returns a row as it was written, for its digest.
var returning = "RETURNING t.version, record_send(ROW(t." + strings.Join(strings.FieldsFunc(audit.TaskColumns, func(r rune) bool { return unicode.IsSpace(r) || r == ',' }), ", t.") + "))"

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

// upsertSQL merges the states of a chunk into the table, as [State.merge] does. A row that would
// not change is not written. A result that answers another request than the one that the id belongs to
// would make version 0, which a constraint forbids.
var upsertSQL = `
INSERT INTO tasks AS t (` + audit.TaskColumns + `)
SELECT * FROM unnest($1::` + RowType + `[])
ON CONFLICT (tenant, task_id) DO UPDATE SET
	state         = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.state ELSE t.state END,
	attempt       = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.attempt ELSE t.attempt END,
	device_id     = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.device_id ELSE t.device_id END,
	model         = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.model ELSE t.model END,
	error_class   = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.error_class ELSE t.error_class END,
	error_message = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.error_message ELSE t.error_message END,
	finished_at   = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.finished_at ELSE t.finished_at END,
	updated_at    = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.updated_at ELSE t.updated_at END,
	input_tokens  = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.input_tokens ELSE t.input_tokens END,
	output_tokens = CASE WHEN (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at) THEN excluded.output_tokens ELSE t.output_tokens END,
	seq           = CASE WHEN excluded.generation > t.generation THEN excluded.seq WHEN excluded.generation < t.generation THEN t.seq ELSE greatest(t.seq, excluded.seq) END,
	assigned_at   = CASE WHEN excluded.generation > t.generation THEN excluded.assigned_at WHEN excluded.generation < t.generation THEN t.assigned_at ELSE greatest(t.assigned_at, excluded.assigned_at) END,
	started_at    = CASE WHEN excluded.generation > t.generation THEN excluded.started_at WHEN excluded.generation < t.generation THEN t.started_at ELSE greatest(t.started_at, excluded.started_at) END,
	submitted_at  = CASE WHEN excluded.known_from > t.known_from THEN excluded.submitted_at
	                     WHEN excluded.known_from = 0 AND t.known_from = 0 THEN least(t.submitted_at, excluded.submitted_at)
	                     ELSE t.submitted_at END,
	known_from    = greatest(t.known_from, excluded.known_from),
	deadline      = CASE WHEN excluded.generation > t.generation THEN excluded.deadline WHEN excluded.generation < t.generation THEN t.deadline ELSE coalesce(t.deadline, excluded.deadline) END,
	generation    = greatest(t.generation, excluded.generation),
	endpoint      = coalesce(t.endpoint, excluded.endpoint),
	priority      = CASE WHEN excluded.seq = 2147483647 THEN coalesce(excluded.priority, t.priority) ELSE coalesce(t.priority, excluded.priority) END,
	job_id        = coalesce(t.job_id, excluded.job_id),
	custom_id     = coalesce(t.custom_id, excluded.custom_id),
	trace_id      = coalesce(t.trace_id, excluded.trace_id),
	callback_url  = coalesce(t.callback_url, excluded.callback_url),
	fingerprint   = coalesce(t.fingerprint, excluded.fingerprint),
	version       = CASE WHEN excluded.finished_at IS NOT NULL AND t.fingerprint <> excluded.fingerprint THEN 0 ELSE t.version + 1 END
WHERE excluded.finished_at IS NOT NULL AND t.fingerprint <> excluded.fingerprint
	OR (excluded.generation, excluded.seq, excluded.updated_at) > (t.generation, t.seq, t.updated_at)
	OR excluded.known_from > t.known_from
	OR excluded.known_from = 0 AND t.known_from = 0 AND excluded.submitted_at < t.submitted_at
	OR excluded.generation = t.generation AND greatest(t.assigned_at, excluded.assigned_at) IS DISTINCT FROM t.assigned_at
	OR excluded.generation = t.generation AND greatest(t.started_at, excluded.started_at) IS DISTINCT FROM t.started_at
	OR t.fingerprint IS NULL AND excluded.fingerprint IS NOT NULL
	OR t.job_id IS NULL AND excluded.job_id IS NOT NULL
	OR t.endpoint IS NULL AND excluded.endpoint IS NOT NULL
	OR t.priority IS NULL AND excluded.priority IS NOT NULL
	OR t.custom_id IS NULL AND excluded.custom_id IS NOT NULL
	OR excluded.generation = t.generation AND t.deadline IS NULL AND excluded.deadline IS NOT NULL
	OR t.trace_id IS NULL AND excluded.trace_id IS NOT NULL
	OR t.callback_url IS NULL AND excluded.callback_url IS NOT NULL
` + returning

// Set merges what a chunk knows into one state per task.
type Set struct {
	byKey map[task.Key]*State
	all   []*State
	slab  []State // room for the next ones
	// Foreign: a result may answer another request than the one that the id belongs to. Ask Postgres, and Bind.
	Foreign bool
	// priorities are the last changes of priority.
	priorities map[task.Key]task.Priority
}

// New returns an empty set, with room for n tasks.
func New(n int) *Set { return &Set{byKey: make(map[task.Key]*State, n)} }

// Add adds what is known of a task; it was recorded after what was added before.
func (s *Set) Add(n *State) {
	if have, ok := s.byKey[n.key]; ok {
		// After a result of an earlier generation the row does not show that there is one, so the
		// constraint would not hold.
		s.Foreign = s.Foreign || !n.finished.IsZero() && (have.gen > n.gen || have.asksOther(n))
		have.merge(n)
		return
	}
	if len(s.slab) == 0 {
		s.slab = make([]State, min(max(len(s.all), 4), 128))
	}
	kept := &s.slab[0]
	s.slab = s.slab[1:]
	*kept = *n
	s.byKey[n.key] = kept
	s.all = append(s.all, kept)
}

// asksOther reports whether two states are known to be about different requests.
func (s *State) asksOther(n *State) bool {
	return s.fingerprint != nil && n.fingerprint != nil && !bytes.Equal(s.fingerprint, n.fingerprint)
}

// Bind replaces the fingerprints of states by those that their ids belong to.
func (s *Set) Bind(bound map[task.Key]task.Fingerprint) {
	for k, f := range bound {
		if st := s.byKey[k]; st != nil && !f.IsZero() {
			st.fingerprint = f.Bytes()
		}
	}
}

// Reprioritize takes a change of priority from an event that is one. A finished task keeps the
// priority that it ran with.
func (s *Set) Reprioritize(e *task.Event) {
	if e.Action != task.TaskReprioritized || e.Outcome != task.OutcomeOK || e.TaskID == "" || e.Priority == "" {
		return
	}
	if s.priorities == nil {
		s.priorities = map[task.Key]task.Priority{}
	}
	s.priorities[e.Key()] = e.Priority
}

// prioritySQL may deadlock with another recorder; Postgres then aborts one of the two, which tries
// again.
var prioritySQL = `
UPDATE tasks t SET priority = u.priority, version = t.version + 1
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (tenant, task_id, priority)
WHERE t.tenant = u.tenant AND t.task_id = u.task_id AND t.finished_at IS NULL AND t.priority IS DISTINCT FROM u.priority
` + returning

// QueuePriorities adds the changes of priority to a batch, after the upsert.
func (s *Set) QueuePriorities(b *pgx.Batch, written Written) {
	if len(s.priorities) == 0 {
		return
	}
	var tenants, ids, priorities []string
	for k, p := range s.priorities {
		tenants, ids, priorities = append(tenants, k.Tenant), append(ids, k.ID), append(priorities, string(p))
	}
	b.Queue(prioritySQL, tenants, ids, priorities).Query(written.scan)
}

// Finished returns the states of tasks that begin and end in the chunk, in the order of their keys. They were
// accepted in it and their results won, so most likely nothing about them was recorded before.
func (s *Set) Finished() []*State {
	finished := slices.DeleteFunc(slices.Clone(s.all), func(s *State) bool { return !s.complete() })
	sortStates(finished)
	return finished
}

// EncodeFinished encodes states for CopySQL, and calls each after each row.
func EncodeFinished(rows *pg.Rows, finished []*State, each func()) []byte {
	rows.Reset(pg.Copy, Width)
	for _, s := range finished {
		s.AddRow(rows)
		each()
	}
	return rows.EndCopy()
}

// DropFinished leaves out the states that Finished returns, because they are written.
func (s *Set) DropFinished() { s.all = slices.DeleteFunc(s.all, (*State).complete) }

// complete reports whether the chunk has both the acceptance of the task and its end.
func (s *State) complete() bool { return s.from == fromAccepted && s.seq == task.TerminalSequence }

// sortStates sorts by key, so that two recorders that write the same tasks wait for each other
// without a deadlock. If both copy and insert, they may deadlock all the same; then Postgres aborts
// one of the two, which tries again.
func sortStates(all []*State) {
	slices.SortFunc(all, func(x, y *State) int {
		return cmp.Or(cmp.Compare(x.key.Tenant, y.key.Tenant), cmp.Compare(x.key.ID, y.key.ID))
	})
}

// Queue adds the upsert of the states to a batch, as an array of rows with the given encoding and type.
func (s *Set) Queue(b *pgx.Batch, rows *pg.Rows, arrays pg.Encoding, rowType uint32, written Written) {
	if len(s.all) == 0 {
		return
	}
	sortStates(s.all)
	rows.Reset(arrays, Width)
	for _, one := range s.all {
		one.AddRow(rows)
	}
	b.Queue(upsertSQL, rows.EndArray(rowType)).Query(written.scan)
}

// AddRow adds a row of [RowType].
func (s *State) AddRow(rows *pg.Rows) {
	rows.Next()
	rows.Text(s.key.Tenant)
	rows.Text(s.key.ID)
	rows.Text(string(s.state))
	rows.Int4(s.seq)
	rows.Int4(s.attempt)
	rows.TextOrNull(s.device)
	rows.TextOrNull(s.model)
	rows.TextOrNull(s.class)
	rows.TextOrNull(s.message)
	rows.TimeOrNull(s.at)
	rows.TimeOrNull(s.finished)
	rows.TimeOrNull(s.assigned)
	rows.TimeOrNull(s.started)
	rows.Int2(s.from)
	rows.TimeOrNull(s.submitted)
	rows.TimeOrNull(s.deadline)
	rows.TextOrNull(s.endpoint)
	rows.TextOrNull(s.priority)
	rows.TextOrNull(s.job)
	rows.TextOrNull(s.customID)
	rows.TextOrNull(s.traceID)
	rows.TextOrNull(s.callback)
	rows.Int4(s.gen)
	rows.BytesOrNull(s.fingerprint)
	rows.Int8(s.usage.InputTokens)
	rows.Int8(s.usage.OutputTokens)
}
