package audittest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
)

// RequireChains reads every row as COPY returns it, checks each chain against the specification,
// and compares the number of rows of each, by its topic and partition, as in "events/0".
func RequireChains(t *testing.T, pool *pgxpool.Pool, want map[string]int64) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	var out bytes.Buffer
	_, err = conn.Conn().PgConn().CopyTo(t.Context(), &out, `COPY (SELECT `+audit.RowColumns+` FROM audit_log
		ORDER BY src_topic, src_partition, chain_seq) TO STDOUT (FORMAT binary)`)
	require.NoError(t, err)
	b := out.Bytes()[19:] // the header
	ends := map[audit.TopicPartition]audit.ChainEnd{}
	for {
		count := int16(binary.BigEndian.Uint16(b))
		b = b[2:]
		if count == -1 {
			break
		}
		require.EqualValues(t, audit.RowWidth, count)
		row, fields := b, make([][]byte, count)
		for i := range fields {
			n := int32(binary.BigEndian.Uint32(b))
			b = b[4:]
			if n >= 0 {
				fields[i], b = b[:n], b[n:]
			}
		}
		hashed := row[:len(row)-len(b)-2*(4+32)]
		at := audit.TopicPartition{Topic: string(fields[audit.ColTopic]), Partition: int32(binary.BigEndian.Uint32(fields[audit.ColPartition]))}
		end, ok := ends[at]
		if !ok {
			end.Hash = audit.Genesis(at)
		}
		end.Rows++
		require.EqualValues(t, end.Rows, binary.BigEndian.Uint64(fields[audit.ColSeq]), "chain_seq of %v", at)
		require.Equal(t, end.Hash[:], fields[audit.ColPrev], "prev_hash of %v, %d", at, end.Rows)
		end.Hash, _ = audit.RowHash(end.Hash, hashed, nil)
		require.Equal(t, end.Hash[:], fields[audit.ColHash], "row_hash of %v, %d", at, end.Rows)
		ends[at] = end
	}
	got := map[string]int64{}
	for at, end := range ends {
		got[at.String()] = end.Rows
		require.Equal(t, fmt.Sprintf("%x", end.Hash), One[string](t, pool, "SELECT encode(hash, 'hex') FROM audit_chains WHERE topic = $1 AND partition = $2 AND rows = $3", at.Topic, at.Partition, end.Rows))
	}
	require.Equal(t, want, got)
}
