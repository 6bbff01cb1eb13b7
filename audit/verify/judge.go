package verify

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// scope is how much of the log is verified.
type scope int

const (
	allDays    scope = iota
	recentDays       // those since a time: chains are verified from their first row that was read
)

func (v *verifier) scope() scope {
	if len(v.older) > 0 {
		return recentDays
	}
	return allDays
}

// live returns the segments that have rows that were read, or lie above such.
func (c *chainCheck) live(sc scope) []*segment {
	all := c.all()
	if sc == allDays {
		return all
	}
	for i, s := range all {
		if s.read {
			return all[i:]
		}
	}
	return nil
}

// lackingRows returns a condition for the rows of older partitions that are needed to connect what
// was read: the clocks of event writers differ, so some rows of a day lie among those of the day
// before. It is empty if nothing is lacking.
func (v *verifier) lackingRows() string {
	var ors []string
	for _, c := range v.chains {
		c.shelve()
		from, to := c.lacking(v.o.Since)
		if to == 0 {
			continue
		}
		if from == c.low && v.olderRead == 0 {
			// Some more of the day before: if the first rows of the period were deleted, there is a
			// hole below the row that is the first now.
			from = max(1, from-edgeRows)
		}
		ors = append(ors, fmt.Sprintf("(src_topic = '%s' AND src_partition = %d AND chain_seq BETWEEN %d AND %d)",
			strings.ReplaceAll(c.at.Topic, "'", "''"), c.at.Partition, from, to))
	}
	slices.Sort(ors)
	return strings.Join(ors, " OR ")
}

// edgeRows is how far into the day before the verification looks for a hole.
const edgeRows = 1000

// lacking returns the first and the last row between which something is not connected; 0 if nothing
// is lacking. The row before the first one counts, because it shows that the first was not cut off.
func (c *chainCheck) lacking(since time.Time) (from, to int64) {
	segments := c.live(recentDays)
	if len(segments) == 0 {
		c.quiet = since.After(c.updated) || c.end.Rows == 0 // nothing was recorded since
		for _, s := range c.all() {
			c.quiet = c.quiet || s.last == c.end.Rows // or the retention has dropped it
		}
		if c.quiet {
			return 0, 0
		}
		c.lowKnown = true // the last row is enough
		return c.end.Rows, c.end.Rows
	}
	if !c.lowKnown {
		c.low, c.lowKnown = segments[0].first-1, true
	}
	lack := func(a, b int64) {
		if from == 0 {
			from = a
		}
		to = b
	}
	if c.low > 0 && segments[0].first > c.low {
		lack(c.low, c.low)
	}
	next := segments[0].last + 1
	for _, s := range segments[1:] {
		if s.first > next && s.first <= c.end.Rows {
			lack(next, s.first-1)
		}
		next = max(next, s.last+1)
	}
	if next <= c.end.Rows {
		lack(next, c.end.Rows)
	}
	return from, to
}

// numbered names a row of a chain by its number.
type numbered struct {
	audit.TopicPartition
	seq int64
}

// known is what was looked up about a row.
type known struct {
	hash audit.Hash
	ref  *RowRef
}

// maxLookups bounds the rows that are looked up.
const maxLookups = 4000

const lookupSQL = `
SELECT a.src_topic, a.src_partition, a.chain_seq, a.row_hash, coalesce(a.src_offset, 0), coalesce(a.src_index, 0), ` + readableTime + `,
	coalesce(a.tenant, ''), coalesce(a.action, ''), coalesce(a.task_id, '')
FROM %s a JOIN unnest($1::text[], $2::int[], $3::bigint[]) AS u (topic, partition, seq)
ON a.src_topic = u.topic AND a.src_partition = u.partition AND a.chain_seq = u.seq`

// readableTime is the time of a row a; NULL if no recorder writes such a time.
const readableTime = "CASE WHEN a.time BETWEEN '1970-01-01Z' AND '9999-01-01Z' THEN a.time END"

// lookup reads the rows with the given numbers, to name them in findings. It reads the whole log,
// so it is only for when something is wrong.
func (v *verifier) lookup(ctx context.Context, tx pgx.Tx, wanted []numbered) (map[numbered][]known, error) {
	topics, parts, seqs := make([]string, len(wanted)), make([]int32, len(wanted)), make([]int64, len(wanted))
	for i, w := range wanted {
		topics[i], parts[i], seqs[i] = w.Topic, w.Partition, w.seq
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(lookupSQL, v.table("audit_log")), topics, parts, seqs)
	if err != nil {
		return nil, fmt.Errorf("looking up the rows of findings: %w", err)
	}
	defer rows.Close()
	out := map[numbered][]known{}
	for rows.Next() {
		var n numbered
		var k known
		var sum []byte
		var at audit.Position
		var when *time.Time
		r := &RowRef{}
		if err := rows.Scan(&n.Topic, &n.Partition, &n.seq, &sum, &at.Offset, &at.Index, &when, &r.Tenant, &r.Action, &r.Task); err != nil {
			return nil, fmt.Errorf("looking up the rows of findings: %w", err)
		}
		if len(sum) == len(k.hash) {
			k.hash = audit.Hash(sum)
		}
		r.Position, r.Seq = n.TopicPartition.At(at).String(), n.seq
		if when != nil {
			r.Time = when.UTC()
		}
		k.ref = r
		if len(out[n]) < 8 {
			out[n] = append(out[n], k)
		}
	}
	return out, rows.Err()
}

// whole reports whether a chain is one segment from its beginning to its end.
func (c *chainCheck) whole(segments []*segment, sc scope) bool {
	if len(segments) == 0 {
		return c.end.Rows == 0 || (sc == recentDays && c.quiet)
	}
	s := segments[0]
	begins := s.first == 1 && s.prev == audit.Genesis(c.at)
	if sc == recentDays && s.first > 1 {
		begins = c.low == 0 || s.first <= c.low
	}
	return len(segments) == 1 && begins && s.last == c.end.Rows && s.hash == c.end.Hash
}

// judge reports what is wrong, chain by chain.
func (v *verifier) judge(ctx context.Context, tx pgx.Tx) error {
	chains := make([]*chainCheck, 0, len(v.chains))
	for _, c := range v.chains {
		c.shelve()
		chains = append(chains, c)
	}
	slices.SortFunc(chains, func(a, b *chainCheck) int {
		return cmp.Or(strings.Compare(a.at.Topic, b.at.Topic), cmp.Compare(a.at.Partition, b.at.Partition))
	})
	sc := v.scope()
	var wanted []numbered
	for _, c := range chains {
		segments := c.live(sc)
		if c.whole(segments, sc) {
			continue
		}
		wanted = append(wanted, numbered{c.at, c.end.Rows + 1})
		for _, s := range segments {
			for _, seq := range []int64{s.first - 1, s.first, s.last, s.last + 1} {
				if len(wanted) < maxLookups {
					wanted = append(wanted, numbered{c.at, seq})
				}
			}
		}
	}
	names := map[numbered][]known{}
	if len(wanted) > 0 {
		var err error
		if names, err = v.lookup(ctx, tx, wanted); err != nil {
			return err
		}
	}
	for _, c := range chains {
		segments := c.live(sc)
		if len(segments) > 0 {
			c.from = segments[0].first
		}
		if !c.whole(segments, sc) {
			w := walk{v: v, c: c, names: names, segments: segments}
			w.run(sc)
		}
		c.checkBreaks()
		c.judgePoints(v.o.Checkpoints, v.standby)
		c.judgeBreaks(v.report)
	}
	v.findMoved()
	v.judgeDrops(v.judgeStatements())
	if err := v.judgeTrees(ctx, tx, chains); err != nil {
		return err
	}
	for _, c := range chains {
		c.report(v.report)
	}
	if err := v.judgeOffsets(ctx, tx); err != nil {
		return err
	}
	for _, f := range v.unknown {
		v.report.add(f)
	}
	v.report.Count += v.unknownCount - int64(len(v.unknown))
	v.judgeCheckpoints()
	v.judgeProofs(chains)
	return nil
}

// judgeCheckpoints reports what is wrong with the checkpoints themselves, and chains that they have
// and the database does not.
func (v *verifier) judgeCheckpoints() {
	c := v.o.Checkpoints
	if c == nil {
		v.report.gap(GapKeys, "no trusted key: name the recorder's signing.pub with --public-key")
		return
	}
	c.check()
	v.report.Checkpoints, v.report.Signers = c.good, slices.Sorted(maps.Keys(c.successions))
	if c.good == 0 {
		v.report.gap(GapCheckpoints, "no checkpoints were available: a chain that was rewritten as a whole would not be noticed")
	} else if age := v.report.Time.Sub(c.newest); age > 3*time.Hour {
		v.report.gap(GapCheckpoints, "the newest checkpoint is from %s: later ones were removed, or no recorder wrote any", c.newest.UTC().Format(time.RFC3339))
	}
	for _, why := range c.unwitnessed {
		v.report.gap(GapWitness, "%s", why)
	}
	for at, points := range c.points {
		if v.chains[at] == nil && at != audit.StatementsChain && !v.standby && !v.lostChain(at, points) {
			last := slices.Max(slices.Collect(maps.Keys(points)))
			if v.report.lostChains == nil {
				v.report.lostChains = map[audit.TopicPartition]bool{}
			}
			v.report.lostChains[at] = true
			v.report.add(Finding{Reason: Rewritten, Topic: at.Topic, Partition: at.Partition, Seq: 1, To: last,
				Detail: fmt.Sprintf("%s says that the chain has %d rows, but audit_chains does not have it", points[last].name, last)})
		}
	}
	for _, f := range c.findings {
		v.report.add(f)
	}
	v.report.Count += c.count - int64(len(c.findings))
	v.report.Notes = append(v.report.Notes, c.notes...)
}

// lostChain reports whether an accepted backup lacks a chain that began after it was made, or Postgres lost it: what it
// had was recorded again, in other chains if it was digests only.
func (v *verifier) lostChain(at audit.TopicPartition, points map[int64]*point) bool {
	for _, again := range v.recovered {
		if !slices.ContainsFunc(slices.Collect(maps.Values(points)), func(p *point) bool { return !p.time.Before(again.Add(breakMargin)) }) {
			return true
		}
	}
	for _, r := range v.restores[at] {
		if !slices.ContainsFunc(slices.Collect(maps.Values(points)), func(p *point) bool { return !p.time.Before(r.time) }) {
			return true
		}
	}
	return false
}

// judgeProofs says up to where the chains are proven against each attacker, and what is not.
func (v *verifier) judgeProofs(chains []*chainCheck) {
	if v.o.Checkpoints == nil || v.o.Checkpoints.good == 0 {
		for _, a := range attackers {
			v.report.Proofs = append(v.report.Proofs, Proof{Against: a.who, Missing: v.recorded(), Why: "no checkpoint that a trusted key signed"})
		}
		return
	}
	gaps := [levels]GapKind{GapTail, GapCopies, GapWitness}
	why := [levels]string{"", "no checkpoint comes from Kafka or from a copy", "no witness has cosigned a checkpoint, and none comes from a copy: see audit.witnesses, or name a copy with --checkpoints"}
	for i, a := range attackers {
		p := Proof{Against: a.who, Proven: v.report.OK()}
		for _, c := range chains {
			p.Rows += c.proven[i].rows
			p.Missing += max(0, c.end.Rows-c.proven[i].rows)
			if at := c.proven[i].at; c.end.Rows > 0 && (p.Until.IsZero() || at.Before(p.Until)) {
				p.Until = at
			}
		}
		switch {
		case p.Rows == 0 && p.Missing > 0:
			p.Proven, p.Why = false, why[i]
			v.report.gap(gaps[i], "%s", p.Why)
		case p.Missing > v.report.lastMissing():
			v.report.gap(gaps[i], "%d rows were recorded after the newest checkpoint that someone with %s cannot write to", p.Missing, a.who)
		}
		if p.Rows > 0 && p.Missing > 0 {
			p.Why = fmt.Sprintf("%d rows are newer", p.Missing)
		}
		if !v.report.OK() {
			p.Why = "there are findings"
		}
		v.report.Proofs = append(v.report.Proofs, p)
	}
}

// lastMissing returns how many rows are not proven against the weaker attacker.
func (r *Report) lastMissing() int64 {
	if n := len(r.Proofs); n > 0 {
		return r.Proofs[n-1].Missing
	}
	return 0
}

// recorded returns the number of rows of all chains.
func (v *verifier) recorded() (rows int64) {
	for _, c := range v.chains {
		rows += c.end.Rows
	}
	return rows
}
