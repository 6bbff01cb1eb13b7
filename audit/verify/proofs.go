package verify

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
)

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

// lostChain reports whether an accepted backup lacks a chain that began after it was made.
func (v *verifier) lostChain(at audit.TopicPartition, points map[int64]*point) bool {
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
