package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/stream"
)

// Options say how to look. The zero value is what the command does by default.
type Options struct {
	// Wait is how long the recorder is waited for: before the first look, so that
	// little is still to be recorded, and before each other one. It need not come;
	// what it has not recorded is in flight.
	Wait time.Duration
	// Settled says that nothing may be in flight: after a drain, say.
	Settled bool
	// Retention is audit.retention: older audit rows are gone. 0: none are.
	Retention time.Duration
	// Problems is how many of each kind are named; the others are counted.
	Problems int
	// Dir is where the temporary file goes; empty: the system's place.
	Dir string
	// Memory bounds each of two sorters, in bytes.
	Memory int
	// Progress hears what is being done; may be nil.
	Progress func(what string)

	between func() // before the second look; for tests
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

// Report is what a check found.
type Report struct {
	Holds    bool             `json:"holds"`
	At       time.Time        `json:"at"` // of the moment that was looked at
	Looks    int              `json:"looks"`
	Seconds  float64          `json:"seconds"`
	Accepted int64            `json:"accepted"` // tasks, of which a record is in the topics
	Terminal int64            `json:"terminal"`
	ByState  map[string]int64 `json:"terminal_by_state"`
	InFlight int64            `json:"in_flight"`
	Where    map[string]int64 `json:"in_flight_where"` // which stage has it
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

// Events is what was compared of the audit log.
type Events struct {
	Records    int64 `json:"records"`    // that are recorded, and in the topic still
	Expected   int64 `json:"expected"`   // rows that they make
	Rows       int64 `json:"rows"`       // rows that are there
	Dead       int64 `json:"dead"`       // events in dead letters
	Duplicates int64 `json:"duplicates"` // rows of results that were not taken
}

// TopicReach says how far back a topic goes.
type TopicReach struct {
	Topic    string     `json:"topic"`
	Records  int64      `json:"records"`
	Complete bool       `json:"complete"`        // nothing was removed from it
	Since    *time.Time `json:"since,omitempty"` // otherwise: it is complete from then on
	Lag      int64      `json:"lag"`             // records that its stage has not finished
}

// Kind says in a word what is wrong.
type Kind string

// The kinds.
const (
	Missing          Kind = "missing"
	NotTaken         Kind = "result_not_taken"
	Unsubmitted      Kind = "result_for_nobody"
	Changed          Kind = "result_changed"
	StateWrong       Kind = "state_wrong"
	StateUnsubmitted Kind = "state_for_nobody"
	CallbackMissing  Kind = "callback_missing"
	CallbackStray    Kind = "callback_for_nothing"
	CallbackTwice    Kind = "callback_twice"
	EventMissing     Kind = "event_missing"
	EventTwice       Kind = "event_twice"
	EventStray       Kind = "event_for_nothing"
	RecordLost       Kind = "record_lost"
	RecordsGone      Kind = "records_gone"
	OffsetsBeyond    Kind = "offsets_beyond"
	ChainRows        Kind = "chain_rows"
	StillInFlight    Kind = "in_flight"
	mostNamesBetween      = 10_000
)

// Kinds is what each kind means, in the order in which they are told.
var Kinds = []struct {
	Kind    Kind
	Meaning string
}{
	{Missing, "accepted, without a result, and nowhere on the way"},
	{NotTaken, "a result is on the topic, the recorder is past it, and no result is in Postgres"},
	{Unsubmitted, "a result of a task that was never submitted"},
	{Changed, "the result in Postgres is not on the topic"},
	{StateWrong, "the rows in tasks and results do not agree"},
	{StateUnsubmitted, "a state of a task that was never submitted"},
	{CallbackMissing, "the result names a callback, and none is due"},
	{CallbackStray, "a callback without a result that names one"},
	{CallbackTwice, "two callbacks, or one with another id than it should have"},
	{EventMissing, "an event that is recorded by the offsets has no audit row"},
	{EventTwice, "an event has more than one audit row"},
	{EventStray, "an audit row of an event that is not in the log"},
	{RecordLost, "a record that cannot be read was finished, and is no dead letter"},
	{RecordsGone, "Kafka removed records before they were recorded"},
	{OffsetsBeyond, "Postgres has recorded more than the topic holds: it was created again, or the broker lost its end"},
	{ChainRows, "audit_chains counts other rows than there are"},
	{StillInFlight, "has not ended, and nothing was to be in flight"},
}

// Problem is one thing that is wrong.
type Problem struct {
	Kind   Kind   `json:"kind"`
	Tenant string `json:"tenant,omitempty"`
	TaskID string `json:"task_id,omitempty"`
	At     string `json:"at,omitempty"` // a position: topic/partition@offset
	What   string `json:"what"`
}

// name is what the problem is about, whatever is said of it.
func (p *Problem) name() string {
	if p.TaskID != "" {
		return p.Tenant + "\x00" + p.TaskID
	}
	return p.At
}

func newReport(limit int) *Report {
	return &Report{ByState: map[string]int64{}, Where: map[string]int64{}, Counts: map[Kind]int64{}, Problems: []Problem{}, seen: map[Kind]map[string]bool{}, limit: limit}
}

// wrong adds a problem. before is the look before this one: what was right then is
// on its way, and no problem. It reports whether the problem counts.
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

// had reports whether a problem was there, as far as is remembered.
func (r *Report) had(p *Problem) bool {
	return r.seen[p.Kind][p.name()] || len(r.seen[p.Kind]) >= mostNamesBetween
}

// Check looks at Kafka and Postgres and says whether the account holds. An error
// means that it could not look, or not to the end.
func Check(ctx context.Context, log *stream.Client, pool *pgxpool.Pool, o Options) (*Report, error) {
	o = o.withDefaults()
	began := time.Now()
	var before *Report
	for n := 1; ; n++ {
		if err := awaitRecorder(ctx, log, pool, o); err != nil {
			return nil, err
		}
		r, err := lookOnce(ctx, log, pool, o, before)
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
			before = nil // it has time to settle
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

// awaitRecorder waits until Postgres holds what is in results and events now, but
// only as long as it may.
func awaitRecorder(ctx context.Context, log *stream.Client, pool *pgxpool.Pool, o Options) error {
	if o.Wait <= 0 {
		return nil
	}
	targets := map[string][]stream.PartitionOffsets{}
	for _, topic := range []string{stream.Results, stream.Events} {
		ends, err := log.Offsets(ctx, "", topic)
		if err != nil {
			return fmt.Errorf("asking how much is in topic %s: %w", topic, err)
		}
		targets[topic] = ends
	}
	until := time.Now().Add(o.Wait)
	for told := false; ; {
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
		if !told {
			o.Progress(fmt.Sprintf("waiting for the recorder, which is %d records behind", behind))
			told = true
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// offsets say up to where topics are in Postgres.
type offsets map[string]map[int]int64

// of is the first offset of a partition that is not recorded, -1 when nothing is.
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
	err := rowsOf(ctx, q, "how far the recorder is", `SELECT topic, partition, next_offset FROM stream_offsets`, nil, func(rows pgx.Rows) error {
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
