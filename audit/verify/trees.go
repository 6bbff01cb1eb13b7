package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/trees"
)

// rootsAt returns the rows with which checkpoints have a root.
func rootsAt(points map[int64]*point) (signed []int64) {
	for seq, p := range points {
		for ; p != nil; p = p.other {
			if p.root != (audit.Hash{}) {
				signed = append(signed, seq)
				break
			}
		}
	}
	slices.Sort(signed)
	return signed
}

// maxKept bounds the hashes of audit_tree that are read.
const maxKept = 1 << 24

// judgeTrees compares the trees of the chains in which nothing else is wrong.
func (v *verifier) judgeTrees(ctx context.Context, tx pgx.Tx, chains []*chainCheck) error {
	if v.forest.Scattered() {
		v.report.gap(GapTrees, "the rows are so scattered on disk that the trees over them could not be computed: verify fewer days at a time with --since")
		return nil
	}
	if err := v.readTree(ctx, tx, "level = 0", func(c *chainCheck, k trees.Node, h audit.Hash) { c.tree.Leaf(k.Index, h) }); err != nil {
		return err
	}
	for _, c := range chains {
		c.tree.Rest()
	}
	above := map[*chainCheck]map[trees.Node]audit.Hash{}
	err := v.readTree(ctx, tx, "level > 0", func(c *chainCheck, k trees.Node, h audit.Hash) {
		if k.Level == audit.TreeStep {
			c.tree.Stored(k.Index, h)
			return
		}
		if above[c] == nil {
			above[c] = map[trees.Node]audit.Hash{}
		}
		above[c][k] = h
	})
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.count > 0 || c.end.Rows <= 0 || v.forest.Scattered() {
			continue
		}
		if w := c.tree.Judge(c.end.Rows, above[c], v.scope() == allDays, c.compareRoot); w != nil {
			f := Finding{Reason: Changed, Seq: w.First, To: w.Last, Detail: w.Detail}
			switch {
			case w.Root:
				f.Reason = Rewritten
			case w.Gone:
				f.Reason = Missing
			}
			c.found(f)
		}
	}
	return nil
}

// compareRoot compares the root of the tree over the rows up to one with what checkpoints say.
func (c *chainCheck) compareRoot(seq int64, root audit.Hash) string {
	for p := c.points[seq]; p != nil; p = p.other {
		if p.matched && p.root != (audit.Hash{}) && p.root != root {
			return fmt.Sprintf("the chain is as signed, but %s has another root of the tree over its rows: the tree was changed before it was signed, and proofs that lead into it prove nothing", p.name)
		}
	}
	return ""
}

// readTree reads hashes of audit_tree.
func (v *verifier) readTree(ctx context.Context, tx pgx.Tx, where string, fn func(*chainCheck, trees.Node, audit.Hash)) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(level, -1), coalesce(node, -1), coalesce(hash, '') FROM `+v.table("audit_tree")+` WHERE `+where+` LIMIT $1`, maxKept+1)
	if err != nil {
		return fmt.Errorf("reading audit_tree: %w", err)
	}
	defer rows.Close()
	foreign := map[audit.TopicPartition]bool{}
	n := 0
	for rows.Next() {
		var at audit.TopicPartition
		var k trees.Node
		var sum []byte
		if err := rows.Scan(&at.Topic, &at.Partition, &k.Level, &k.Index, &sum); err != nil {
			return fmt.Errorf("reading audit_tree: %w", err)
		}
		if n++; n > maxKept {
			return fmt.Errorf("audit_tree has more than %d rows", maxKept)
		}
		c := v.chains[at]
		if c == nil || len(sum) != sha256Size || k.Index < 0 || k.Level < 0 || k.Level > 56 || k.Index >= c.end.Rows>>k.Level {
			if len(foreign) < maxFindings {
				foreign[at] = true
			}
			continue
		}
		fn(c, k, audit.Hash(sum))
	}
	for at := range maps.Keys(foreign) {
		if c := v.chains[at]; c == nil || c.count == 0 {
			v.report.add(Finding{Reason: Inserted, Topic: at.Topic, Partition: at.Partition, Detail: "audit_tree has a hash over rows that the chain does not have: no recorder wrote it"})
		}
	}
	return rows.Err()
}
