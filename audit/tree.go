package audit

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Edge is a Merkle tree of RFC 6962 that only grows: the number of its leaves, and the roots of the
// perfect subtrees that they form, the largest first. That is enough to add leaves and to know the root.
//
//	   ┌──▶ ● ◀──┐                 a tree of 7 leaves has three of them,
//	┌─ ● ─┐   ┌─ ● ─┐   ┌─ ● ─┐    of 4, 2 and 1 leaves
//	○     ○   ○     ○   ○     ○   ○
type Edge struct {
	Size   int64
	Hashes []Hash
}

// Node is a hash inside a tree: the root of the perfect subtree of 2^Level leaves that begins with the
// leaf number Index·2^Level, counted from 0.
type Node struct {
	Level int
	Index int64
	Hash  Hash
}

// TreeStep is the number of levels between those that table audit_tree keeps: the roots of 256, of 65,536
// leaves, and so on. A proof then needs at most 256 hashes of each of these levels.
const (
	TreeStep  = 8
	TreeBlock = 1 << TreeStep // leaves below a kept hash of the lowest level
)

// RowLeaf returns the hash of the leaf of a row: its data is the row_hash.
func RowLeaf(row Hash) Hash {
	var b [1 + sha256.Size]byte
	copy(b[1:], row[:])
	return sha256.Sum256(b[:])
}

// LeafHash returns the hash of a leaf with the given data.
func LeafHash(data []byte) Hash { return Hash(tlog.RecordHash(data)) }

// NodeHash returns the hash of the node above two others.
func NodeHash(left, right Hash) Hash { return Hash(tlog.NodeHash(left, right)) }

// Append adds a leaf. It appends to kept the nodes that the leaf completes of the levels that are
// multiples of [TreeStep].
func (e *Edge) Append(leaf Hash, kept []Node) []Node {
	n, level := e.Size, 0
	for ; n&1 == 1; n >>= 1 {
		last := len(e.Hashes) - 1
		leaf = NodeHash(e.Hashes[last], leaf)
		e.Hashes = e.Hashes[:last]
		if level++; level%TreeStep == 0 {
			kept = append(kept, Node{level, n >> 1, leaf})
		}
	}
	e.Hashes = append(e.Hashes, leaf)
	e.Size++
	return kept
}

// Complete adds a leaf, and returns it and the hashes of all nodes that it completes, from below: what
// [tlog.StoredHashes] calls the hashes of a record.
func (e *Edge) Complete(leaf Hash) []Hash {
	done := []Hash{leaf}
	for n := e.Size; n&1 == 1; n >>= 1 {
		last := len(e.Hashes) - 1
		leaf = NodeHash(e.Hashes[last], leaf)
		e.Hashes = e.Hashes[:last]
		done = append(done, leaf)
	}
	e.Hashes = append(e.Hashes, leaf)
	e.Size++
	return done
}

// Root returns the root of the tree.
func (e *Edge) Root() Hash {
	if e.Size == 0 {
		return sha256.Sum256(nil)
	}
	return fold(e.Hashes)
}

// fold returns the root over perfect subtrees, the largest first; at least one.
func fold(subtrees []Hash) Hash {
	last := len(subtrees) - 1
	h := subtrees[last]
	for i := last - 1; i >= 0; i-- {
		h = NodeHash(subtrees[i], h)
	}
	return h
}

// Clone returns a copy that grows on its own.
func (e *Edge) Clone() Edge { return Edge{e.Size, append([]Hash(nil), e.Hashes...)} }

// Bytes returns the hashes one after the other, for [ParseEdge].
func (e *Edge) Bytes() []byte {
	b := make([]byte, 0, len(e.Hashes)*sha256.Size)
	for i := range e.Hashes {
		b = append(b, e.Hashes[i][:]...)
	}
	return b
}

// ParseEdge returns the tree of a number of leaves with the given hashes, one after the other.
func ParseEdge(size int64, hashes []byte) (Edge, error) {
	n := bits.OnesCount64(uint64(size))
	if size < 0 || len(hashes) != n*sha256.Size {
		return Edge{}, fmt.Errorf("a tree of %d leaves with %d bytes of hashes", size, len(hashes))
	}
	e := Edge{Size: size, Hashes: make([]Hash, n, n+2)}
	for i := range e.Hashes {
		e.Hashes[i] = Hash(hashes[i*sha256.Size:])
	}
	return e, nil
}

const (
	// MaxPath bounds the hashes of a path.
	MaxPath = 63
	// MaxLeaves bounds the leaves of a tree; package tlog does not end for the largest numbers.
	MaxLeaves = 1 << 56
)

// CheckPath reports whether a path leads from a leaf, counted from 0, to the root of a tree.
func CheckPath(path []Hash, root, leaf Hash, index, size int64) bool {
	if len(path) > MaxPath || index < 0 || index >= size || size > MaxLeaves {
		return false
	}
	p := make(tlog.RecordProof, len(path))
	for i, h := range path {
		p[i] = tlog.Hash(h)
	}
	return tlog.CheckRecord(p, size, tlog.Hash(root), index, tlog.Hash(leaf)) == nil
}

// ProvePath returns the path from a leaf to the root of the tree of so many leaves.
func ProvePath(index, size int64, nodes tlog.HashReader) ([]Hash, error) {
	p, err := tlog.ProveRecord(size, index, nodes)
	if err != nil {
		return nil, fmt.Errorf("proving leaf %d of %d: %w", index, size, err)
	}
	return plain(p), nil
}

// plain converts hashes of package tlog.
func plain(hashes []tlog.Hash) []Hash {
	out := make([]Hash, len(hashes))
	for i, h := range hashes {
		out[i] = Hash(h)
	}
	return out
}
