package verify

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/batchyard/batchyard/audit"
)

// AcceptRestore returns what an operator accepts who declares that the database that was verified is a
// backup: from which rows on older checkpoints no longer count, and where the chains end now. An error
// says why a restore does not explain the report.
func (r *Report) AcceptRestore(reason string) (*audit.AcceptedBackup, error) {
	if !r.Since.IsZero() {
		return nil, errors.New("only a part of the log was verified")
	}
	if r.Checkpoints == 0 {
		return nil, errors.New("there are no checkpoints that the restored log could contradict")
	}
	for _, f := range r.Findings {
		if f.Reason != Rewritten && (f.Reason != Statement || f.Topic != audit.StatementsChain.Topic || r.lostStatements == 0) && f.Reason != Unrecorded {
			return nil, fmt.Errorf("a restore does not explain this finding: %s %s: %s", f.Reason, f.Chain(), f.Detail)
		}
	}
	b := &audit.AcceptedBackup{Reason: reason}
	add := func(at audit.TopicPartition, rows int64, hash string, from int64) {
		b.Chains = append(b.Chains, audit.AcceptedChain{CheckpointChain: audit.CheckpointChain{Topic: at.Topic, Partition: at.Partition, Rows: rows, Hash: hash}, From: from})
	}
	contradicted := r.lostStatements > 0 || len(r.lostChains) > 0
	for _, c := range r.Chains {
		contradicted = contradicted || c.Contradicted > 0
		add(audit.TopicPartition{Topic: c.Topic, Partition: c.Partition}, c.Rows, c.Hash, cmp.Or(c.Contradicted, c.Rows+1))
	}
	for at := range r.lostChains {
		add(at, 0, "", 1)
	}
	if r.lostStatements > 0 {
		add(audit.StatementsChain, 0, "", r.lostStatements)
	}
	if !contradicted {
		return nil, errors.New("no checkpoint contradicts the log: there is nothing to accept")
	}
	slices.SortFunc(b.Chains, func(x, y audit.AcceptedChain) int {
		return cmp.Or(strings.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition))
	})
	return b, nil
}
