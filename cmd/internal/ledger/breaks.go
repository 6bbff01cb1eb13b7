package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// readBreaks notes which records were never recorded, as recorders have said, and since when a topic
// that was replaced is complete. What Postgres had lost and was recorded again is
// no problem.
func (l *look) readBreaks(ctx context.Context, tx pgx.Tx) error {
	return rowsOf(ctx, tx, "interruptions of the recording", `SELECT topic, partition, kind, chain_seq, first_offset, coalesce(last_offset, $1), noticed_at FROM stream_breaks ORDER BY noticed_at`,
		[]any{audit.UnknownOffset}, func(rows pgx.Rows) error {
			var b audit.Break
			if err := rows.Scan(&b.Topic, &b.Partition, &b.Kind, &b.Seq, &b.First, &b.Last, &b.Time); err != nil {
				return err
			}
			switch b.Kind {
			case audit.RecordsMissed:
				l.holes[b.At()] = append(l.holes[b.At()], &hole{Break: b})
			case audit.TopicReplaced:
				l.r.wrong(l.before, Problem{Kind: TopicReplaced, At: fmt.Sprintf("%s@%d", b.At(), b.First),
					What: fmt.Sprintf("the topic was replaced, which the recorder noticed at %s; records %s of the old one were not recorded", b.Time.UTC().Format(time.RFC3339), b.Offsets())})
				l.replaced[b.At()] = max(l.replaced[b.At()], b.Seq)
				l.since[b.Topic] = max(l.since[b.Topic], b.Time.UnixMicro())
			}
			return nil
		})
}
