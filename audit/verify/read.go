package verify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/internal/pg"
)

// rawRow is a row of audit_log as COPY returns it. It is valid until the next one.
type rawRow struct{ *copyrows.Row }

// covered returns what the row's hash covers, besides prev_hash.
func (r *rawRow) covered() []byte { return r.Fields(0, audit.ColPrev) }

// hash returns the hash in a column.
func (r *rawRow) hash(i int) (h audit.Hash, ok bool) {
	f := r.Field(i)
	if len(f) != len(h) {
		return h, false
	}
	return audit.Hash(f), true
}

func (r *rawRow) position() audit.Position {
	return audit.Position{Offset: r.Int8(audit.ColOffset), Index: r.Int4(audit.ColIndex)}
}

// time returns the time in a column; zero if no recorder writes such a time, as infinity.
func (r *rawRow) time(i int) time.Time {
	const most = 253402300800000000 // the year 10000, which JSON has no form for
	if at := r.Int8(i); at > -most && at < most-pg.Epoch {
		return time.UnixMicro(at + pg.Epoch).UTC()
	}
	return time.Time{}
}

// ref names the row.
func (r *rawRow) ref() *RowRef {
	at := audit.TopicPartition{Topic: string(r.Field(audit.ColTopic)), Partition: r.Int4(audit.ColPartition)}
	return &RowRef{
		Position: at.At(r.position()).String(), Seq: r.Int8(audit.ColSeq), Time: r.time(audit.ColTime),
		Tenant: string(r.Field(audit.ColTenant)), Action: string(r.Field(audit.ColAction)), Task: string(r.Field(audit.ColTask)),
	}
}

// read reads the rows of a partition that match a condition. Any number of goroutines may call it, each with a
// connection of its own: they hash rows side by side, and take turns with what connects them, block by block.
func (v *verifier) read(ctx context.Context, conn *pgx.Conn, p partitionTable, where string) error {
	query := "SELECT " + audit.RowColumns + " FROM " + p.from(where)
	var own []audit.Hash // of the rows of a block
	var scratch []byte
	place := v.placeOf(p)
	var counter *tables.Counter
	if v.tables != nil {
		counter = v.tables.Counter()
	}
	h := copyrows.Handler{
		Row: func(r *copyrows.Row) error {
			raw := rawRow{r}
			prev, _ := raw.hash(audit.ColPrev)
			var sum audit.Hash
			sum, scratch = audit.RowHash(prev, raw.covered(), scratch)
			own = append(own, sum)
			place.take(&raw)
			if counter != nil {
				counter.Row(r)
			}
			return nil
		},
		Block: func(rows []byte) error {
			v.turn.Lock()
			defer v.turn.Unlock()
			i := 0
			err := copyrows.Each(rows, audit.RowWidth, func(r *copyrows.Row) error {
				i++
				return v.take(&rawRow{r}, own[i-1])
			})
			own = own[:0]
			return err
		},
	}
	if err := copyrows.Read(ctx, conn.PgConn(), query, audit.RowWidth, h); err != nil {
		return fmt.Errorf("reading %s: %w", p.name, err)
	}
	if counter != nil {
		v.tables.Absorb(counter)
	}
	v.turn.Lock()
	defer v.turn.Unlock()
	place.report(v.report)
	v.progress(Progress{v.report.Rows, v.about})
	return nil
}

// place is the bounds of a partition. Postgres takes them for granted, and does not look in a partition for rows that
// cannot be there.
type place struct {
	partition string
	from, to  int64          // in microseconds, as Postgres counts
	elsewhere map[int64]bool // days that have a partition of their own, if this is the default partition
	n         int64
	first     *RowRef
}

const microsOfDay = int64(audit.Day / time.Microsecond)

func (v *verifier) placeOf(p partitionTable) *place {
	if !p.day.IsZero() {
		from := p.day.UnixMicro() - pg.Epoch
		return &place{partition: p.name, from: from, to: from + microsOfDay}
	}
	all := &place{partition: p.name, elsewhere: map[int64]bool{}}
	for _, other := range slices.Concat(v.newer, v.older) {
		if !other.day.IsZero() {
			all.elsewhere[(other.day.UnixMicro()-pg.Epoch)/microsOfDay] = true
		}
	}
	return all
}

func (p *place) take(r *rawRow) {
	at := r.Int8(audit.ColTime)
	if p.elsewhere == nil && at >= p.from && at < p.to {
		return
	}
	if p.elsewhere != nil {
		day := at / microsOfDay
		if at%microsOfDay < 0 {
			day--
		}
		if !p.elsewhere[day] {
			return
		}
	}
	if p.n++; p.n == 1 {
		p.first = r.ref()
	}
}

func (p *place) report(to *Report) {
	if p.n > 0 {
		to.add(Finding{Reason: Moved, Row: p.first, Detail: fmt.Sprintf("%d rows are in the partition %s, which is not that of their day: queries for their time do not find them, such as %s", p.n, p.partition, p.first)})
	}
}
