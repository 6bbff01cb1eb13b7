package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// stored is a tree with all hashes, in the order of package tlog.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = s[x]
	}
	return out, nil
}

// Roots of the trees over the first of these leaves, as other implementations of RFC 6962 test them.
func TestKnownRoots(t *testing.T) {
	t.Parallel()
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var e Edge
	for i := range roots {
		root := e.Root()
		require.Equal(t, roots[i], hex.EncodeToString(root[:]), "%d leaves", i)
		if i < len(leaves) {
			b, err := hex.DecodeString(leaves[i])
			require.NoError(t, err)
			e.Append(LeafHash(b), nil)
		}
	}
	require.Equal(t, LeafHash(make([]byte, 32)), RowLeaf(Hash{}))
}

// The tree that a recorder keeps is that of package tlog, its kept nodes are those of that tree, and every leaf has a
// path at every later size.
func TestEdgesGrowLikeTrees(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 3*TreeBlock).Draw(t, "size")
		var all stored
		var e Edge
		var kept []Node
		roots := []Hash{e.Root()}
		for i := range size {
			leaf := LeafHash([]byte{byte(i), byte(i >> 8)})
			more, err := tlog.StoredHashesForRecordHash(i, tlog.Hash(leaf), all)
			require.NoError(t, err)
			all = append(all, more...)
			twin := e.Clone()
			require.Equal(t, plain(more), twin.Complete(leaf))
			kept = e.Append(leaf, kept)
			require.Equal(t, e.Hashes, twin.Hashes)
			roots = append(roots, e.Root())
		}
		want, err := tlog.TreeHash(size, all)
		require.NoError(t, err)
		require.Equal(t, Hash(want), e.Root())
		require.Len(t, kept, int(size/TreeBlock))
		for _, n := range kept {
			require.Equal(t, Hash(all[tlog.StoredHashIndex(n.Level, n.Index)]), n.Hash)
		}
		again, err := ParseEdge(size, e.Bytes())
		require.NoError(t, err)
		require.Equal(t, e.Root(), again.Root())
		_, err = ParseEdge(size, append(e.Bytes(), 0))
		require.Error(t, err)

		at := rapid.Int64Range(1, size).Draw(t, "at")
		index := rapid.Int64Range(0, at-1).Draw(t, "index")
		path, err := ProvePath(index, at, all)
		require.NoError(t, err)
		leaf := LeafHash([]byte{byte(index), byte(index >> 8)})
		require.True(t, CheckPath(path, roots[at], leaf, index, at))
		require.False(t, CheckPath(path, roots[at], LeafHash(nil), index, at))
		if len(path) > 0 {
			path[rapid.IntRange(0, len(path)-1).Draw(t, "hash")][rapid.IntRange(0, sha256.Size-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			require.False(t, CheckPath(path, roots[at], leaf, index, at))
		}
	})
}

func TestHugeTreesAreRefused(t *testing.T) {
	t.Parallel()
	require.False(t, CheckPath(nil, Hash{}, Hash{}, 0, 1<<62))
	require.False(t, CheckPath(make([]Hash, 64), Hash{}, Hash{}, 0, 1<<50))
	_, err := ParseEdge(-1, nil)
	require.Error(t, err)
}
