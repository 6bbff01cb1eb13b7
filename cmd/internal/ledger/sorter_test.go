package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

func TestSortedAcrossRuns(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{64, 1 << 10, 1 << 20} {
		dir := t.TempDir()
		s := newSorter(dir, limit)
		const n = 5000
		for i := range n {
			require.NoError(t, s.add(binary.BigEndian.AppendUint32([]byte("k"), uint32(i*7919%n))))
		}
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, "the file must be unlinked")
		next := uint32(0)
		require.NoError(t, s.each(func(b []byte) error {
			require.Equal(t, next, binary.BigEndian.Uint32(b[1:]))
			next++
			return nil
		}))
		require.Equal(t, uint32(n), next)
		s.close()
	}
}

func TestSorterReportsAnUnusableDirectory(t *testing.T) {
	t.Parallel()
	s := newSorter("/does/not/exist", 64)
	var err error
	for i := range 100 {
		if err = s.add(fmt.Appendf(nil, "entry %d", i)); err != nil {
			break
		}
	}
	require.ErrorContains(t, err, "--dir")
}

func TestFactsReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	k := task.Run{Key: task.Key{Tenant: "acme", ID: "änd"}, Generation: 2}
	for _, f := range []fact{
		{kind: factRecord, flags: flagUnfinished, where: position{2, 7, 1 << 40}},
		{kind: factOffered, flags: flagLater, where: position{6, 1, 2}, end: end{3, 4, -5}},
		{kind: factResult, end: end{3, 4, 1 << 50}, since: 7, taken: 8},
		{kind: factState, end: end{state: 1}, since: 7, taken: 9},
		{kind: factCallback, flags: flagOddID},
	} {
		name, got := splitFact(appendFact(nil, k, &f))
		require.Equal(t, k, keyOf(name))
		require.Equal(t, f, got)
	}
	n := note{where: position{7, 1, 99}, kind: noteRow, n: 3, digest: 4}
	require.Equal(t, n, readNote(appendNote(nil, &n)))
}

// A million tasks need about as much memory as a few.
func TestMemoryDoesNotGrowWithTasks(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // measure live memory rather than garbage
	high := func(n int) uint64 {
		runtime.GC()
		var m runtime.MemStats
		var most uint64
		l := &look{o: Options{}.withDefaults(), r: newReport(10), facts: newFacts(t.TempDir(), 2<<20), since: map[string]int64{}}
		defer l.facts.close()
		sample := func() {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
		results, _ := topicIndex(stream.Results)
		for i := range n {
			k := task.Run{Key: task.Key{Tenant: "acme", ID: fmt.Sprintf("0199f3c1-7d2a-7000-8000-%012d", i*7919%n)}}
			e := end{3, 1, int64(i)}
			for _, f := range []fact{
				{kind: factRecord, where: position{1, 0, uint64(i)}},
				{kind: factOffered, where: position{results, 0, uint64(i)}, end: e},
				{kind: factResult, end: e, since: 1, taken: 2},
				{kind: factState, end: e, since: 1, taken: 2},
			} {
				require.NoError(t, l.facts.add(k, f))
			}
			require.NoError(t, l.facts.note(note{where: position{7, 0, uint64(i)}, kind: noteExpected, n: 1}))
			require.NoError(t, l.facts.note(note{where: position{7, 0, uint64(i)}, kind: noteRow}))
			if i%50_000 == 0 {
				sample()
			}
		}
		seen := 0
		require.NoError(t, func() error { defer sample(); return l.judgeTasks() }())
		require.NoError(t, l.facts.positions.each(func([]byte) error {
			if seen++; seen%100_000 == 0 {
				sample()
			}
			return nil
		}))
		require.Equal(t, int64(n), l.r.Terminal)
		require.Empty(t, l.r.Problems)
		return most
	}
	few, many := high(20_000), high(1_000_000)
	t.Logf("%d KB with 20,000 tasks, %d KB with 1,000,000", few>>10, many>>10)
	require.Less(t, many, few+8<<20)
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("acme\x00id"))
	f.Fuzz(func(t *testing.T, id []byte) {
		k := task.Run{Key: task.Key{Tenant: "t", ID: string(id)}}
		if !nameable(k) {
			return
		}
		name, _ := splitFact(appendFact(nil, k, &fact{kind: factRecord}))
		require.True(t, bytes.Equal(name, append(append([]byte("t\x00"), id...), 0)))
	})
}
