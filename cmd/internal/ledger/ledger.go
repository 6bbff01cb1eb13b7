package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/stream"
)

// Options configure a check. Zero values mean the defaults.
type Options struct {
	// Wait limits how long each pass first waits for the recorder to catch up. What it
	// has not recorded by then counts as in flight.
	Wait time.Duration
	// Settled requires that nothing is in flight, for example after a drain.
	Settled bool
	// Retention is audit.retention: older audit rows may be gone. 0 keeps all.
	Retention time.Duration
	// Problems is how many of each kind are listed; the others are only counted. 0 means 100.
	Problems int
	// Dir is the directory of the temporary file; empty: the system's.
	Dir string
	// Memory limits each of the two sorters, in bytes.
	Memory int
	// Progress, if not nil, is called with each step.
	Progress func(what string)

	between func() // called before the second pass; for tests
}

func (o Options) withDefaults() Options {
	if o.Problems <= 0 {
		o.Problems = 100
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// Report is the outcome of a check.
type Report struct {
	Holds    bool             `json:"holds"`
	At       time.Time        `json:"at"` // when Postgres was read
	Looks    int              `json:"looks"`
	Seconds  float64          `json:"seconds"`
	Accepted int64            `json:"accepted"` // tasks with a record in the topics
	Terminal int64            `json:"terminal"`
	ByState  map[string]int64 `json:"terminal_by_state"`
	InFlight int64            `json:"in_flight"`
	Where    map[string]int64 `json:"in_flight_where"` // by the stage that has the task
	Dead     int64            `json:"dead_letters"`
	Missing  int64            `json:"missing"`
	Older    int64            `json:"older"` // tasks with a result whose records retention removed
	Events   Events           `json:"events"`
	Topics   []TopicReach     `json:"topics"`
	Counts   map[Kind]int64   `json:"problem_counts"`
	Problems []Problem        `json:"problems"`
	seen     map[Kind]map[string]bool
	limit    int
}

// Events compares the topic events with the audit log.
type Events struct {
	Records    int64 `json:"records"`    // recorded, and still in the topic
	Expected   int64 `json:"expected"`   // audit rows that they should have
	Rows       int64 `json:"rows"`       // audit rows that they have
	Dead       int64 `json:"dead"`       // events in dead letters
	Duplicates int64 `json:"duplicates"` // audit rows of duplicate results
}

// TopicReach describes how far back a topic reaches.
type TopicReach struct {
	Topic    string     `json:"topic"`
	Records  int64      `json:"records"`
	Complete bool       `json:"complete"`        // no record was removed
	Since    *time.Time `json:"since,omitempty"` // if not Complete: everything since then is there
	Lag      int64      `json:"lag"`             // records from the committed offset on
}

// Kind is a kind of problem.
type Kind string

// The kinds of problems.
const (
	Missing          Kind = "missing"
	NotTaken         Kind = "result_not_taken"
	ResultUnknown    Kind = "result_of_unknown_task"
	Changed          Kind = "result_changed"
	StateWrong       Kind = "state_wrong"
	StateUnknown     Kind = "state_of_unknown_task"
	TasksGone        Kind = "tasks_gone"
	CallbackMissing  Kind = "callback_missing"
	CallbackStray    Kind = "callback_unexpected"
	CallbackTwice    Kind = "callback_twice"
	EventMissing     Kind = "event_missing"
	EventTwice       Kind = "event_twice"
	EventStray       Kind = "event_unexpected"
	RecordLost       Kind = "record_lost"
	RecordsGone      Kind = "records_gone"
	OffsetsBeyond    Kind = "offsets_beyond"
	TopicReplaced    Kind = "topic_replaced"
	ChainRows        Kind = "chain_rows"
	SchemaWrong      Kind = "schema_wrong"
	StillInFlight    Kind = "in_flight"
	mostNamesBetween      = 10_000
)

// Kinds lists the kinds with their meanings, in the order of reports.
var Kinds = []struct {
	Kind    Kind
	Meaning string
}{
	{Missing, "an accepted task that has no result and is not in flight"},
	{NotTaken, "the recorder has read a result of the task, but Postgres has none"},
	{ResultUnknown, "a result of a task that was never submitted"},
	{Changed, "the result in Postgres is not in the topic"},
	{StateWrong, "the tables tasks and results disagree"},
	{StateUnknown, "a state of a task that was never submitted"},
	{TasksGone, "a topic of tasks was recreated, or its records were deleted: tasks from before have none"},
	{CallbackMissing, "the result names a callback, but no delivery is due"},
	{CallbackStray, "a callback that no result names"},
	{CallbackTwice, "more than one callback, or one with the wrong id"},
	{EventMissing, "the offsets say that an event is recorded, but it has no audit row"},
	{EventTwice, "an event has more than one audit row"},
	{EventStray, "an audit row whose event is not in the topic"},
	{RecordLost, "an unreadable record was finished, but is not a dead letter"},
	{RecordsGone, "Kafka removed records before their stage read them"},
	{OffsetsBeyond, "Postgres has recorded more than the topic holds: the topic was recreated or lost its last records"},
	{TopicReplaced, "the topic is not the one that was recorded before: what the old one held and was not recorded is lost"},
	{ChainRows, "audit_chains and audit_log disagree about the number of rows"},
	{SchemaWrong, "another schema has tables or views of the same names, which a search path may show people"},
	{StillInFlight, "tasks are in flight, which --settled forbids"},
}

// Problem is one violation.
type Problem struct {
	Kind       Kind   `json:"kind"`
	Tenant     string `json:"tenant,omitempty"`
	TaskID     string `json:"task_id,omitempty"`
	Generation int    `json:"generation,omitempty"`
	At         string `json:"at,omitempty"` // a position: topic/partition@offset
	What       string `json:"what"`
}

// name identifies the task or position that the problem is about.
func (p *Problem) name() string {
	if p.TaskID != "" {
		return p.Tenant + "\x00" + p.TaskID + "\x00" + strconv.Itoa(p.Generation)
	}
	return p.At
}

func newReport(limit int) *Report {
	return &Report{ByState: map[string]int64{}, Where: map[string]int64{}, Counts: map[Kind]int64{}, Problems: []Problem{}, seen: map[Kind]map[string]bool{}, limit: limit}
}

// wrong adds a problem, unless the previous pass, if any, did not find it: then the task was
// only moving. It reports whether the problem was added.
func (r *Report) wrong(before *Report, p Problem) bool {
	if before != nil && !before.had(&p) {
		return false
	}
	r.Counts[p.Kind]++
	if len(r.seen[p.Kind]) < mostNamesBetween {
		if r.seen[p.Kind] == nil {
			r.seen[p.Kind] = map[string]bool{}
		}
		r.seen[p.Kind][p.name()] = true
	}
	if r.Counts[p.Kind] <= int64(r.limit) {
		r.Problems = append(r.Problems, p)
	}
	return true
}

// had reports whether the pass found the problem, or too many to remember them all.
func (r *Report) had(p *Problem) bool {
	return r.seen[p.Kind][p.name()] || len(r.seen[p.Kind]) >= mostNamesBetween
}

// Check reads Kafka and Postgres and reports whether every task is accounted for. An error
// means that it could not finish.
func Check(ctx context.Context, log *stream.Client, pool *pgxpool.Pool, o Options) (*Report, error) {
	o = o.withDefaults()
	began := time.Now()
	var before *Report
	for n := 1; ; n++ {
		if err := awaitRecorder(ctx, log, pool, o); err != nil {
			return nil, err
		}
		r, err := lookOnce(ctx, log, pool, o, before)
		if open := new(stream.OpenTransactionError); errors.As(err, &open) && time.Since(began) < o.Wait {
			before = nil
			o.Progress(err.Error())
			if err := pause(ctx, time.Second); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Looks = n
		r.Seconds = time.Since(began).Seconds()
		clean := len(r.Counts) == 0
		unsettled := o.Settled && r.InFlight > 0
		switch {
		case clean && !unsettled:
			r.Holds = true
			return r, nil
		case clean && time.Since(began) < o.Wait:
			before = nil // there is time left for tasks to end
			if err := pause(ctx, time.Second); err != nil {
				return nil, err
			}
			continue
		case before != nil || clean:
			if unsettled {
				r.wrong(nil, Problem{Kind: StillInFlight, What: fmt.Sprintf("%d tasks are in flight", r.InFlight)})
			}
			return r, nil
		}
		before = r
		if o.between != nil {
			o.between()
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitRecorder waits until Postgres holds what is in results and events now, at most
// o.Wait.
func awaitRecorder(ctx context.Context, log *stream.Client, pool *pgxpool.Pool, o Options) error {
	if o.Wait <= 0 {
		return nil
	}
	targets := map[string][]stream.PartitionOffsets{}
	for _, topic := range []string{stream.Results, stream.Events} {
		ends, err := log.Offsets(ctx, "", topic)
		if err != nil {
			return fmt.Errorf("reading the offsets of topic %s: %w", topic, err)
		}
		targets[topic] = ends
	}
	until := time.Now().Add(o.Wait)
	for announced := false; ; {
		next, err := recordedOffsets(ctx, pool)
		if err != nil {
			return err
		}
		var behind int64
		for topic, ends := range targets {
			for _, s := range ends {
				behind += max(0, s.End-max(next.of(topic, s.Partition), s.First))
			}
		}
		if behind == 0 || !time.Now().Before(until) {
			return nil
		}
		if !announced {
			o.Progress(fmt.Sprintf("waiting for the recorder, which is %d records behind", behind))
			announced = true
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// offsets are the next offsets that the recorder will read, by topic and partition.
type offsets map[string]map[int]int64

// of returns the first unrecorded offset of a partition; -1 if nothing is recorded.
func (o offsets) of(topic string, partition int) int64 {
	if next, ok := o[topic][partition]; ok {
		return next
	}
	return -1
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func recordedOffsets(ctx context.Context, q querier) (offsets, error) {
	out := offsets{}
	err := rowsOf(ctx, q, "the recorder's offsets", `SELECT topic, partition, next_offset FROM stream_offsets`, nil, func(rows pgx.Rows) error {
		var topic string
		var partition int
		var next int64
		if err := rows.Scan(&topic, &partition, &next); err != nil {
			return err
		}
		if out[topic] == nil {
			out[topic] = map[int]int64{}
		}
		out[topic][partition] = next
		return nil
	})
	return out, err
}

// rowsOf calls fn for each row of a query, one at a time.
func rowsOf(ctx context.Context, q querier, what, sql string, args []any, fn func(pgx.Rows) error) error {
	rows, err := q.Query(ctx, sql, args...)
	if err == nil {
		for err == nil && rows.Next() {
			err = fn(rows)
		}
		rows.Close()
		err = errors.Join(err, rows.Err())
	}
	if err != nil {
		return fmt.Errorf("reading %s from Postgres: %w", what, err)
	}
	return nil
}
