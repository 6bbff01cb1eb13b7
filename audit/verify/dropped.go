package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// droppedRun is an entry of audit_dropped.
type droppedRun struct {
	audit.DroppedRun
	day  string
	when time.Time // the beginning of 1970: it is no time that a recorder writes
	// impossible says that retention cannot have dropped the day then; there, that the day exists.
	there, impossible bool
}

// readDropped reads which rows retention has dropped, according to a table that anyone who can write to
// the database can change. judgeDrops decides which entries count.
func (v *verifier) readDropped(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(first_seq, 0), coalesce(last_seq, -1), coalesce(prev_hash, ''), coalesce(row_hash, ''),
		coalesce(real::text, ''), EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass AND c.relname = 'audit_log_' || to_char(real, 'YYYYMMDD')),
		CASE WHEN dropped_at BETWEEN '1970-01-01Z' AND '9999-01-01Z' THEN dropped_at END,
		(dropped_at < (real + 2)::timestamp AT TIME ZONE 'UTC' OR dropped_at > now() + interval '1 hour') IS NOT FALSE
		FROM (SELECT *, CASE WHEN day BETWEEN '1970-01-01' AND '9999-01-01' THEN day END AS real FROM `+v.table("audit_dropped")+`) d
		ORDER BY topic, partition, first_seq`, v.table("audit_log"))
	if err != nil {
		return fmt.Errorf("reading audit_dropped: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r droppedRun
		var when *time.Time
		if err := rows.Scan(&r.Topic, &r.Partition, &r.First, &r.Last, &r.Prev, &r.Hash, &r.day, &r.there, &when, &r.impossible); err != nil {
			return fmt.Errorf("reading audit_dropped: %w", err)
		}
		r.when = time.Unix(0, 0)
		if when != nil {
			r.when = *when
		}
		if err := v.takeDropped(r); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (v *verifier) takeDropped(r droppedRun) error {
	c := v.chains[r.TopicPartition]
	if c == nil || r.First > r.Last || r.First < 1 || r.Last > c.end.Rows || len(r.Prev) != len(audit.Hash{}) || len(r.Hash) != len(audit.Hash{}) {
		v.report.add(Finding{Reason: Inserted, Topic: r.Topic, Partition: r.Partition, Seq: r.First, To: r.Last,
			Detail: "audit_dropped has an entry that the retention did not write: there is no such chain, or its numbers or hashes are malformed"})
		return nil
	}
	v.dropped = append(v.dropped, r)
	c.edges[r.First-1] = 0
	v.report.Dropped += r.Last - r.First + 1
	return v.join(c, segment{first: r.First, last: r.Last, prev: audit.Hash(r.Prev), hash: audit.Hash(r.Hash), dropped: r.day})
}

// dropOf is what was dropped in one transaction.
type dropOf struct {
	day  string
	when time.Time
}

// judgeDrops decides which drops count: those that a recorder has signed, and that fit the times of the
// checkpoints and of the rows around them. signed is the number of the last statement in a checkpoint.
func (v *verifier) judgeDrops(signed int64) {
	possible := v.dropped[:0]
	for _, r := range v.dropped {
		switch {
		case r.there:
			v.undropped(r, "but the partition of that day exists")
		case r.impossible || r.day == "":
			v.undropped(r, fmt.Sprintf("at %s, when the retention does not drop that day", r.when.UTC().Format(time.RFC3339)))
		default:
			possible = append(possible, r)
		}
	}
	if v.dropped = possible; v.o.Checkpoints == nil || len(v.dropped) == 0 {
		if len(v.dropped) > 0 {
			v.report.gap(GapDropped, "%d rows are gone, and only audit_dropped says that retention dropped them: without a trusted key its signed statements cannot be checked", v.report.Dropped)
		}
		return
	}
	groups := map[dropOf][]droppedRun{}
	for _, r := range v.dropped { // in the order of the digests
		k := dropOf{r.day, r.when}
		groups[k] = append(groups[k], r)
	}
	var old []droppedRun // without a statement about them alone
	for _, g := range groups {
		s := v.drops[digestOf(g)]
		if s == nil || s.Dropped.Day != g[0].day {
			old = append(old, g...)
			continue
		}
		if s.Number > signed {
			v.report.gap(GapTail, "the drop of %s (statement %d) is newer than the newest checkpoint", s.Dropped.Day, s.Number)
		}
		for _, r := range g {
			v.judgeRun(r, s)
		}
	}
	slices.SortFunc(old, compareRuns)
	if s := v.adopted; s != nil && len(old) > 0 && digestOf(old) == s.Dropped.Digest {
		v.report.gap(GapDropped, "%d rows were dropped before drops were signed: statement 1 of %s lists them", s.Dropped.Rows, s.Time.UTC().Format(time.RFC3339))
		return
	}
	for _, r := range old {
		v.undropped(r, "but no recorder has signed that")
	}
}

func digestOf(runs []droppedRun) string {
	out := make([]audit.DroppedRun, len(runs))
	for i, r := range runs {
		out[i] = r.DroppedRun
		out[i].Day, out[i].At = r.day, r.when
	}
	return audit.RunsDigest(out)
}

func compareRuns(a, b droppedRun) int {
	return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.First, b.First))
}

// undropped reports rows that retention has not dropped.
func (v *verifier) undropped(r droppedRun, why string) {
	f := Finding{Reason: Missing, Seq: r.First, Detail: fmt.Sprintf("audit_dropped says that the retention dropped it with %s, %s", r.day, why)}
	if r.Last > r.First {
		f.To = r.Last
	}
	v.chains[r.TopicPartition].found(f)
}

// judgeRun compares a signed drop with the times around it. A recorder drops what the database shows
// it: someone who can write there could have changed the time of rows first, and so have had them dropped.
func (v *verifier) judgeRun(r droppedRun, s *audit.Statement) {
	retention, err := time.ParseDuration(s.Dropped.Retention)
	if err != nil {
		retention = 2 * audit.Day
	}
	after := v.recordedAfter(r)
	if after.IsZero() || s.Time.Sub(after) >= retention-min(lateness, retention/2) {
		return
	}
	v.report.gap(GapDropped, "rows %d to %d of %s were recorded after %s and dropped at %s as rows of %s, which is sooner than the retention of %s: they came very late, or someone changed their times to have them dropped",
		r.First, r.Last, r.TopicPartition, after.UTC().Format(time.RFC3339), s.Time.UTC().Format(time.RFC3339), r.day, s.Dropped.Retention)
}

// lateness is how much later than it happened an event may be recorded and still be dropped with its
// day, as after an outage.
const lateness = 7 * audit.Day

// recordedAfter returns a time after which the rows of a run were recorded: the row before was recorded
// then, or a checkpoint of that time does not have them.
func (v *verifier) recordedAfter(r droppedRun) (after time.Time) {
	c := v.chains[r.TopicPartition]
	if at := c.edges[r.First-1]; at != 0 {
		after = time.UnixMicro(at + pg.Epoch)
	}
	for seq, p := range c.points {
		if seq < r.First && p.differs == nil && p.time.After(after) {
			after = p.time
		}
	}
	return after
}
