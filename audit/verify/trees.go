package verify

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// Proofs depend on the trees that they lead into: someone who can write to the database could have changed
// audit_chains.edge, and a recorder then signs a tree with rows that never were. So the tree of each chain is
// computed from its rows, in blocks of 256 as they arrive in any order, and compared with the roots in the
// checkpoints, with the edge, and with table audit_tree. Blocks that retention has dropped come from
// audit_tree; a signed root over them proves that they are right.

// tree is the tree of a chain while its rows arrive.
type tree struct {
	edge   []byte           // as audit_chains has it
	signed []int64          // the rows with which checkpoints have a root, sorted
	open   map[int64]*block // not complete, by their numbers
	last   *block           // that the last row went to
	number int64            // of last
	roots  map[int64]audit.Hash
	rests  map[int64]audit.Hash // by signed row: the root over the rows of its block up to it
	free   *block
}

// block is 256 consecutive leaves.
type block struct {
	leaves [audit.TreeBlock]audit.Hash
	have   [audit.TreeBlock / 64]uint64
}

// maxOpenBlocks bounds the memory to a quarter of a gigabyte. Rows are nearly in the order of their chains, so
// there are a few for each chain.
const maxOpenBlocks = 1 << 15

func newTree(edge []byte, points map[int64]*point) *tree {
	t := &tree{edge: bytes.Clone(edge), open: map[int64]*block{}, roots: map[int64]audit.Hash{}, rests: map[int64]audit.Hash{}}
	for seq, p := range points {
		for ; p != nil; p = p.other {
			if p.root != (audit.Hash{}) {
				t.signed = append(t.signed, seq)
				break
			}
		}
	}
	slices.Sort(t.signed)
	return t
}

// grow adds a row to the tree of its chain.
func (v *verifier) grow(c *chainCheck, seq int64, row audit.Hash) {
	if v.noTrees || seq < 1 {
		return
	}
	v.addLeaf(c.tree, seq-1, audit.RowLeaf(row))
}

func (v *verifier) addLeaf(t *tree, index int64, leaf audit.Hash) {
	number := index / audit.TreeBlock
	b := t.last
	if b == nil || t.number != number {
		if b = t.open[number]; b == nil {
			if _, done := t.roots[number]; done {
				return // the row exists twice, which is a finding of its own
			}
			if v.openBlocks++; v.openBlocks > maxOpenBlocks {
				v.noTrees = true
				for _, c := range v.chains {
					c.tree.open, c.tree.last, c.tree.free = nil, nil, nil
				}
				return
			}
			if b = t.free; b == nil {
				b = &block{}
			}
			t.free = nil
			t.open[number] = b
		}
		t.last, t.number = b, number
	}
	at := index % audit.TreeBlock
	b.leaves[at] = leaf
	if b.have[at/64] |= 1 << (at % 64); b.whole() {
		t.close(number, b)
		v.openBlocks--
	}
}

func (b *block) whole() bool {
	return b.have == [4]uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
}

// first returns how many of the first leaves are there.
func (b *block) first() (n int) {
	for _, word := range b.have {
		k := bits.TrailingZeros64(^word)
		if n += k; k < 64 {
			break
		}
	}
	return n
}

// close computes what is needed of a complete block, and keeps its memory for another.
func (t *tree) close(number int64, b *block) {
	t.rest(number, b)
	t.roots[number] = b.edge(audit.TreeBlock).Hashes[0]
	delete(t.open, number)
	b.have, t.last, t.free = [4]uint64{}, nil, b
}

// edge returns the tree over the first leaves of a block.
func (b *block) edge(leaves int) (e *audit.Edge) {
	e = &audit.Edge{}
	for i := range leaves {
		e.Append(b.leaves[i], nil)
	}
	return e
}

// rest computes the roots over the rows of a block up to those that checkpoints are about.
func (t *tree) rest(number int64, b *block) {
	from, _ := slices.BinarySearch(t.signed, number*audit.TreeBlock+1)
	e, there := audit.Edge{}, int64(b.first())
	for _, seq := range t.signed[from:] {
		n := seq - number*audit.TreeBlock
		if n >= audit.TreeBlock || n > there {
			return
		}
		for e.Size < n {
			e.Append(b.leaves[e.Size], nil)
		}
		t.rests[seq] = e.Root()
	}
}

// keptNode names a hash of audit_tree above the blocks.
type keptNode struct {
	level int16
	index int64
}

// maxKept bounds the hashes of audit_tree that are read.
const maxKept = 1 << 24

// judgeTrees compares the trees of the chains in which nothing else is wrong.
func (v *verifier) judgeTrees(ctx context.Context, tx pgx.Tx, chains []*chainCheck) error {
	if v.noTrees {
		v.report.gap(GapTrees, "the rows are so scattered on disk that the trees over them could not be computed: verify fewer days at a time with --since")
		return nil
	}
	if err := v.readTree(ctx, tx, "level = 0", func(c *chainCheck, k keptNode, h audit.Hash) { v.addLeaf(c.tree, k.index, h) }); err != nil {
		return err
	}
	for _, c := range chains {
		for number, b := range c.tree.open {
			c.tree.rest(number, b)
		}
	}
	above := map[*chainCheck]map[keptNode]audit.Hash{}
	wrong := map[*chainCheck]*Finding{}
	seen := map[*chainCheck]int64{} // blocks that audit_tree has
	err := v.readTree(ctx, tx, "level > 0", func(c *chainCheck, k keptNode, h audit.Hash) {
		if k.level != audit.TreeStep {
			if above[c] == nil {
				above[c] = map[keptNode]audit.Hash{}
			}
			above[c][k] = h
			return
		}
		seen[c]++
		if own, ok := c.tree.roots[k.index]; !ok {
			c.tree.roots[k.index] = h
		} else if own != h && wrong[c] == nil {
			wrong[c] = wrongNode(k)
		}
	})
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.count > 0 || c.end.Rows <= 0 || v.noTrees {
			continue
		}
		f := wrong[c]
		if f == nil && seen[c] != c.end.Rows/audit.TreeBlock {
			f = &Finding{Reason: Missing, Seq: 1, To: c.end.Rows, Detail: fmt.Sprintf("audit_tree has %d hashes of 256 rows each of this chain instead of %d: rows cannot be proven with it", seen[c], c.end.Rows/audit.TreeBlock)}
		}
		if f == nil {
			f = c.judgeTree(above[c], v.scope())
		}
		if f != nil {
			c.found(*f)
		}
	}
	return nil
}

func lacking(number int64) *Finding {
	return &Finding{Reason: Missing, Seq: number*audit.TreeBlock + 1, To: (number + 1) * audit.TreeBlock, Detail: "audit_tree lacks hashes of these rows that the retention has dropped: the others cannot be proven"}
}

func wrongNode(k keptNode) *Finding {
	rows := int64(1) << k.level
	return &Finding{Reason: Changed, Seq: k.index*rows + 1, To: (k.index + 1) * rows, Detail: fmt.Sprintf("audit_tree has another hash over these rows (level %d) than they lead to: proofs made with it are not valid", k.level)}
}

// judgeTree compares the tree with what was signed and with what is stored.
func (c *chainCheck) judgeTree(above map[keptNode]audit.Hash, sc scope) *Finding {
	t := c.tree
	tail := c.end.Rows / audit.TreeBlock
	for number := range t.open {
		if number != tail && sc == allDays {
			return lacking(number)
		}
	}
	blocks := audit.Edge{}
	var nodes []audit.Node
	next := 0
	for number := int64(0); ; number++ {
		for ; next < len(t.signed) && t.signed[next] < (number+1)*audit.TreeBlock; next++ {
			if f := c.compareRoot(t.signed[next], &blocks); f != nil {
				return f
			}
		}
		if (number+1)*audit.TreeBlock > c.end.Rows {
			break
		}
		root, ok := t.roots[number]
		if !ok {
			return lacking(number)
		}
		nodes = blocks.Append(root, nodes[:0])
		for _, n := range nodes {
			k := keptNode{int16(n.Level + audit.TreeStep), n.Index}
			if have, ok := above[k]; !ok || have != n.Hash {
				return wrongNode(k)
			}
			delete(above, k)
		}
	}
	for k := range above {
		return wrongNode(k)
	}
	edge := slices.Clone(blocks.Hashes)
	if rest := int(c.end.Rows % audit.TreeBlock); rest > 0 {
		b := t.open[tail]
		switch {
		case b != nil && b.first() == rest:
		case sc == allDays:
			return lacking(tail)
		default:
			return nil // they were not read
		}
		edge = append(edge, b.edge(rest).Hashes...)
	}
	whole := audit.Edge{Size: c.end.Rows, Hashes: edge}
	if !bytes.Equal(whole.Bytes(), t.edge) {
		return &Finding{Reason: Changed, Seq: c.end.Rows, Detail: "the column edge of audit_chains is not the edge of the tree over the rows: a recorder would continue, and sign, another tree"}
	}
	return nil
}

// compareRoot compares the tree over the rows up to one with what checkpoints say. blocks is the tree over the
// blocks before.
func (c *chainCheck) compareRoot(seq int64, blocks *audit.Edge) *Finding {
	over := blocks.Clone()
	over.Size = seq
	if seq%audit.TreeBlock > 0 {
		rest, ok := c.tree.rests[seq]
		if !ok {
			return nil // its rows were dropped; a later root covers them
		}
		over.Hashes = append(over.Hashes, rest)
	}
	for p := c.points[seq]; p != nil; p = p.other {
		if p.matched && p.root != (audit.Hash{}) && p.root != over.Root() {
			return &Finding{Reason: Rewritten, Seq: 1, To: seq, Detail: fmt.Sprintf("the chain is as signed, but %s has another root of the tree over its rows: the tree was changed before it was signed, and proofs that lead into it prove nothing", p.name)}
		}
	}
	return nil
}

// readTree reads hashes of audit_tree.
func (v *verifier) readTree(ctx context.Context, tx pgx.Tx, where string, fn func(*chainCheck, keptNode, audit.Hash)) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(level, -1), coalesce(node, -1), coalesce(hash, '') FROM `+v.table("audit_tree")+` WHERE `+where+` LIMIT $1`, maxKept+1)
	if err != nil {
		return fmt.Errorf("reading audit_tree: %w", err)
	}
	defer rows.Close()
	foreign := map[audit.TopicPartition]bool{}
	n := 0
	for rows.Next() {
		var at audit.TopicPartition
		var k keptNode
		var sum []byte
		if err := rows.Scan(&at.Topic, &at.Partition, &k.level, &k.index, &sum); err != nil {
			return fmt.Errorf("reading audit_tree: %w", err)
		}
		if n++; n > maxKept {
			return fmt.Errorf("audit_tree has more than %d rows", maxKept)
		}
		c := v.chains[at]
		if c == nil || len(sum) != sha256Size || k.index < 0 || k.level < 0 || k.level > 56 || k.index >= c.end.Rows>>k.level {
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
