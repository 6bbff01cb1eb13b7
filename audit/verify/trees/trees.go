// Package trees computes the Merkle trees over the rows of chains, from rows that arrive in any order, and compares
// them with what is stored of them. It is apart from package verify because it knows nothing of rows, chains and
// findings: it gets numbered hashes, and says which of them do not lead to a root.
//
// Proofs depend on the trees that they lead into: someone who can write to the database could have changed
// audit_chains.edge, and a recorder then signs a tree with rows that never were. So the tree of each chain is
// computed from its rows, in blocks of 256 as they arrive, and compared with the roots in the checkpoints, with the
// edge, and with table audit_tree. Blocks that retention has dropped come from audit_tree; a signed root over them
// proves that they are right.
package trees

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"github.com/batchyard/batchyard/audit"
)

// Forest is the trees of all chains, which share a bound of memory.
type Forest struct {
	trees     []*Tree
	open      int // blocks that are not complete
	scattered bool
}

// Tree is the tree of a chain while its rows arrive.
type Tree struct {
	forest *Forest
	edge   []byte           // as audit_chains has it
	signed []int64          // the rows with which checkpoints have a root, sorted
	open   map[int64]*block // not complete, by their numbers
	last   *block           // that the last row went to
	number int64            // of last
	roots  map[int64]audit.Hash
	rests  map[int64]audit.Hash // by signed row: the root over the rows of its block up to it
	stored int64                // blocks that audit_tree has
	wrong  *Wrong               // with them
	free   *block
}

// Wrong is what is wrong with a tree.
type Wrong struct {
	Gone        bool // hashes are missing; otherwise they are others
	First, Last int64
	Detail      string
	Root        bool // a signed root is another
}

// Node names a hash of audit_tree above the blocks.
type Node struct {
	Level int16
	Index int64
}

// block is 256 consecutive leaves.
type block struct {
	leaves [audit.TreeBlock]audit.Hash
	have   [audit.TreeBlock / 64]uint64
}

// maxOpenBlocks bounds the memory to a quarter of a gigabyte. Rows are nearly in the order of their chains, so
// there are a few for each chain.
const maxOpenBlocks = 1 << 15

// New adds a tree to the forest. edge is what audit_chains has of it, and signed are the numbers of the rows, sorted, with
// which checkpoints have a root.
func (f *Forest) New(edge []byte, signed []int64) *Tree {
	t := &Tree{forest: f, edge: bytes.Clone(edge), signed: signed, open: map[int64]*block{}, roots: map[int64]audit.Hash{}, rests: map[int64]audit.Hash{}}
	f.trees = append(f.trees, t)
	return t
}

// Scattered reports whether there were so many incomplete blocks at once that the trees were given up.
func (f *Forest) Scattered() bool { return f.scattered }

// Row adds the row with a number, from 1.
func (t *Tree) Row(seq int64, row audit.Hash) {
	if seq >= 1 {
		t.Leaf(seq-1, audit.RowLeaf(row))
	}
}

// Leaf adds a leaf, of which the row may be gone.
func (t *Tree) Leaf(index int64, leaf audit.Hash) {
	f := t.forest
	if f.scattered {
		return
	}
	number := index / audit.TreeBlock
	b := t.last
	if b == nil || t.number != number {
		if b = t.open[number]; b == nil {
			if _, done := t.roots[number]; done {
				return // the row exists twice, which is a finding of its own
			}
			if f.open++; f.open > maxOpenBlocks {
				f.scattered = true
				for _, o := range f.trees {
					o.open, o.last, o.free = nil, nil, nil
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
		f.open--
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
func (t *Tree) close(number int64, b *block) {
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
func (t *Tree) rest(number int64, b *block) {
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

func lacking(number int64) *Wrong {
	return &Wrong{Gone: true, First: number*audit.TreeBlock + 1, Last: (number + 1) * audit.TreeBlock, Detail: "audit_tree lacks hashes of these rows that the retention has dropped: the others cannot be proven"}
}

func wrongNode(k Node) *Wrong {
	rows := int64(1) << k.Level
	return &Wrong{First: k.Index*rows + 1, Last: (k.Index + 1) * rows, Detail: fmt.Sprintf("audit_tree has another hash over these rows (level %d) than they lead to: proofs made with it are not valid", k.Level)}
}

// Stored takes the root of a block as audit_tree has it.
func (t *Tree) Stored(number int64, root audit.Hash) {
	t.stored++
	if own, ok := t.roots[number]; !ok {
		t.roots[number] = root
	} else if own != root && t.wrong == nil {
		t.wrong = wrongNode(Node{audit.TreeStep, number})
	}
}

// Rest takes note that all leaves have arrived.
func (t *Tree) Rest() {
	for number, b := range t.open {
		t.rest(number, b)
	}
}

// Judge compares the tree over so many rows with what is stored: the blocks that [Tree.Stored] got, and the hashes above
// them. all says that all rows were read. For each root that checkpoints have, signed says what is wrong with it, if
// anything.
func (t *Tree) Judge(rows int64, above map[Node]audit.Hash, all bool, signed func(seq int64, root audit.Hash) string) *Wrong { //nolint:revive // what the caller has read
	if t.wrong != nil {
		return t.wrong
	}
	if t.stored != rows/audit.TreeBlock {
		return &Wrong{Gone: true, First: 1, Last: rows, Detail: fmt.Sprintf("audit_tree has %d hashes of 256 rows each of this chain instead of %d: rows cannot be proven with it", t.stored, rows/audit.TreeBlock)}
	}
	tail := rows / audit.TreeBlock
	for number := range t.open {
		if number != tail && all {
			return lacking(number)
		}
	}
	blocks := audit.Edge{}
	var nodes []audit.Node
	next := 0
	for number := int64(0); ; number++ {
		for ; next < len(t.signed) && t.signed[next] < (number+1)*audit.TreeBlock; next++ {
			seq := t.signed[next]
			root, ok := t.rootOf(seq, &blocks)
			if !ok {
				continue
			}
			if detail := signed(seq, root); detail != "" {
				return &Wrong{Root: true, First: 1, Last: seq, Detail: detail}
			}
		}
		if (number+1)*audit.TreeBlock > rows {
			break
		}
		root, ok := t.roots[number]
		if !ok {
			return lacking(number)
		}
		nodes = blocks.Append(root, nodes[:0])
		for _, n := range nodes {
			k := Node{int16(n.Level + audit.TreeStep), n.Index}
			if have, ok := above[k]; !ok || have != n.Hash {
				return wrongNode(k)
			}
			delete(above, k)
		}
	}
	for k := range above {
		return wrongNode(k)
	}
	return t.judgeEdge(rows, &blocks, all)
}

// judgeEdge compares the edge of the tree with that of audit_chains.
func (t *Tree) judgeEdge(rows int64, blocks *audit.Edge, all bool) *Wrong {
	tail := rows / audit.TreeBlock
	edge := slices.Clone(blocks.Hashes)
	if rest := int(rows % audit.TreeBlock); rest > 0 {
		b := t.open[tail]
		switch {
		case b != nil && b.first() == rest:
		case all:
			return lacking(tail)
		default:
			return nil // they were not read
		}
		edge = append(edge, b.edge(rest).Hashes...)
	}
	whole := audit.Edge{Size: rows, Hashes: edge}
	if !bytes.Equal(whole.Bytes(), t.edge) {
		return &Wrong{First: rows, Detail: "the column edge of audit_chains is not the edge of the tree over the rows: a recorder would continue, and sign, another tree"}
	}
	return nil
}

// rootOf returns the root over the rows up to one. blocks is the tree over the blocks before. ok is false if its rows
// were dropped: then a later root covers them.
func (t *Tree) rootOf(seq int64, blocks *audit.Edge) (root audit.Hash, ok bool) {
	over := blocks.Clone()
	over.Size = seq
	if seq%audit.TreeBlock > 0 {
		rest, ok := t.rests[seq]
		if !ok {
			return root, false
		}
		over.Hashes = append(over.Hashes, rest)
	}
	return over.Root(), true
}
