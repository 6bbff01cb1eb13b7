package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// requireChains reads every row as COPY gives it and checks each chain by
// nothing but what the documentation says of it.
func requireChains(t *testing.T, pool *pgxpool.Pool, want map[place]int64) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	var out bytes.Buffer
	_, err = conn.Conn().PgConn().CopyTo(t.Context(), &out, `COPY (SELECT `+chainColumns+`, prev_hash, row_hash FROM audit_log
		ORDER BY src_topic, src_partition, chain_seq) TO STDOUT (FORMAT binary)`)
	require.NoError(t, err)
	b := out.Bytes()[19:] // the header
	ends := map[place]chain{}
	for {
		count := int16(binary.BigEndian.Uint16(b))
		b = b[2:]
		if count == -1 {
			break
		}
		require.EqualValues(t, chainWidth+2, count)
		row, fields := b, make([][]byte, count)
		for i := range fields {
			n := int32(binary.BigEndian.Uint32(b))
			b = b[4:]
			if n >= 0 {
				fields[i], b = b[:n], b[n:]
			}
		}
		covered := row[:len(row)-len(b)-2*(4+32)]
		at := place{string(fields[27]), int32(binary.BigEndian.Uint32(fields[28]))}
		end, ok := ends[at]
		if !ok {
			end.hash = genesis(at.topic, at.partition)
		}
		end.rows++
		require.EqualValues(t, end.rows, binary.BigEndian.Uint64(fields[31]), "chain_seq of %v", at)
		require.Equal(t, end.hash[:], fields[32], "prev_hash of %v, %d", at, end.rows)
		end.hash, _ = link(end.hash, covered, nil)
		require.Equal(t, end.hash[:], fields[33], "row_hash of %v, %d", at, end.rows)
		ends[at] = end
	}
	got := map[place]int64{}
	for at, end := range ends {
		got[at] = end.rows
		require.Equal(t, fmt.Sprintf("%x", end.hash), one[string](t, pool, "SELECT encode(hash, 'hex') FROM audit_chains WHERE topic = $1 AND partition = $2 AND rows = $3", at.topic, at.partition, end.rows))
	}
	require.Equal(t, want, got)
}

// TestRowsAreChained writes what makes rows in every way, by two recorders, and
// follows the chains.
func TestRowsAreChained(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := newRig(t, pool)
	e0, e1, res := r.own("events", 0), r.own("events", 1), r.own("results", 0)
	s, u := newStory("t1"), newStory("t2")
	r.record(e0.events(t, s.accepted(), s.event(task.TaskQueued, 0, "")), e1.events(t, u.accepted()), e0.events(t, s.event(task.TaskAssigned, 1, "d1")))
	r.record(res.result(t, s.result(task.Success, "d1")), e0.events(t, s.event(task.TaskSucceeded, 1, "d1")))
	// Later results of the same tasks are rows of their own, in the order of their records.
	late := []*entry{res.result(t, s.result(task.Failed, "d2")), res.result(t, u.result(task.Failed, "d1")), res.result(t, s.result(task.Expired))}
	r.record(slices.Concat(late, []*entry{e1.events(t, u.event(task.TaskQueued, 0, ""))})...)
	requireChains(t, pool, map[place]int64{{"events", 0}: 4, {"events", 1}: 2, {"results", 0}: 2})

	// What was rolled back leaves no trace, and another owner goes on.
	var no *errNotOurs
	stale := e0.events(t, s.event(task.TaskQueued, 1, ""))
	twin := newRig(t, pool)
	f0 := twin.own("events", 0)
	f0.read = f0.next
	_, err := r.w.db.apply(t.Context(), chunk{stale})
	require.ErrorAs(t, err, &no)
	twin.record(f0.events(t, s.event(task.TaskQueued, 1, "")), f0.events(t, s.event(task.TaskAssigned, 2, "d1")))
	requireChains(t, pool, map[place]int64{{"events", 0}: 6, {"events", 1}: 2, {"results", 0}: 2})
}
