package tables

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/internal/pg"
)

// Of each task that ended, the log has an event, and results has a row that is as old. Both are added up in buckets
// of tasks, as hashes with a random seed: events count, and results and events of results that came second subtract.
// Only the tasks of the buckets in which something is left are compared with their events in SQL.

// endBuckets is the number of buckets of a day.
const endBuckets = 1 << 10

type dayOfEnds [endBuckets]uint64

// maxEnded bounds the tasks that are compared in SQL.
const maxEnded = 5000

// Indexes into [audit.ResultColumns].
const resultState, resultFinished = 2, 24

// ended counts how a task ended. A cancelled task has no time of its own: the result may be older than the event.
func (c *Counter) ended(tenant, id []byte, state string, at int64, n uint64) {
	us := at + pg.Epoch
	day := floorDiv(us, dayMicros)
	if day < c.from || us >= c.before {
		return
	}
	c.begin()
	c.text(tenant)
	c.text(id)
	bucket := maphash.Bytes(c.seed, c.key) % endBuckets
	c.key = append(append(c.key, state...), 0)
	if state != "CANCELLED" {
		c.number(us)
	}
	d := c.ends[day]
	if d == nil {
		d = new(dayOfEnds)
		c.ends[day] = d
	}
	d[bucket] += n * maphash.Bytes(c.seed, c.key)
}

// subtract is -1, as [Counter.ended] adds it.
const subtract = math.MaxUint64

// endRow counts the row of an event of how a task ended.
func (c *Counter) endRow(r *copyrows.Row, state string) {
	if !r.Null(audit.ColTask) {
		c.ended(r.Field(audit.ColTenant), r.Field(audit.ColTask), state, r.Int8(audit.ColTime), 1)
	}
}

// secondResult subtracts the event of a result that came second, as its result is not in results.
func (c *Counter) secondResult(r *copyrows.Row) {
	detail := r.Field(audit.ColDetail)
	at, err := time.Parse(time.RFC3339Nano, string(textOf(detail, "finished_at")))
	if err == nil && !r.Null(audit.ColTask) {
		c.ended(r.Field(audit.ColTenant), r.Field(audit.ColTask), string(textOf(detail, "state")), at.UnixMicro()-pg.Epoch, subtract)
	}
}

// endedOtherwise returns the ids of tasks in buckets in which something is left, and how many more there are.
func (l *Log) endedOtherwise(ctx context.Context, tx pgx.Tx, o Options) (tasks []string, more int, err error) {
	c := l.counted
	for day, d := range c.ends {
		if *d == (dayOfEnds{}) {
			continue
		}
		from := dayOf(day)
		rows, err := tx.Query(ctx, "SELECT tenant, task_id FROM "+pgx.Identifier{o.Schema, "audit_log"}.Sanitize()+
			" WHERE action IN ('task.succeeded', 'task.failed', 'task.cancelled', 'task.expired') AND time >= $1 AND time < $2 AND task_id IS NOT NULL", from, from.Add(audit.Day))
		if err == nil {
			var tenant, id string
			_, err = pgx.ForEachRow(rows, []any{&tenant, &id}, func() error {
				c.begin()
				c.text([]byte(tenant))
				c.text([]byte(id))
				switch left := d[maphash.Bytes(c.seed, c.key)%endBuckets]; {
				case left == 0:
				case len(tasks) == maxEnded:
					more++
				default:
					tasks = append(tasks, id)
				}
				return nil
			})
		}
		if err != nil {
			return nil, 0, fmt.Errorf("looking in the log for tasks without a result: %w", err)
		}
	}
	slices.Sort(tasks)
	return slices.Compact(tasks), more, nil
}
