package verify

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/advances"
)

// digestsNear is how much older or newer than its transaction a row with digests is at most.
const digestsNear = audit.Day

// judgeOffsets compares what rows say about how far partitions were recorded with each other and with stream_offsets.
// With --since, or if rows are missing, what the others say is not enough.
func (v *verifier) judgeOffsets(ctx context.Context, tx pgx.Tx) error {
	if v.scope() != allDays || v.damaged() {
		return nil
	}
	if v.advances.Scattered() {
		v.report.gap(GapTrees, "the rows are so scattered on disk that it could not be checked that no record was skipped: verify fewer days at a time with --since")
		return nil
	}
	rows, err := tx.Query(ctx, "SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(next_offset, -1) FROM "+v.table("stream_offsets")+" ORDER BY 1, 2 LIMIT $1", maxChains)
	if err != nil {
		return fmt.Errorf("reading stream_offsets: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p advances.Partition, err error) {
		return p, row.Scan(&p.Topic, &p.Partition, &p.Next)
	})
	if err != nil {
		return fmt.Errorf("reading stream_offsets: %w", err)
	}
	for i := range all {
		for _, b := range v.breaks {
			if b.At() == all[i].TopicPartition && b.Kind == audit.TopicReplaced {
				all[i].Replaced = append(all[i].Replaced, b.Break)
			}
		}
	}
	var edge time.Time
	if len(v.dropped) > 0 {
		edge = v.completeFrom().Add(digestsNear)
	}
	for _, f := range v.advances.Judge(all, edge) {
		if f.Unproven {
			v.report.gap(GapDropped, "%s", f.What)
			continue
		}
		reason := Changed
		if f.Gone {
			reason = Missing
		}
		v.report.add(Finding{Reason: reason, Detail: f.What})
	}
	return nil
}
