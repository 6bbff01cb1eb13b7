package copyrows

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// encode returns rows of three fields, as COPY sends them.
func encode(rows ...[3][]byte) (b []byte) {
	b = append(b, header...)
	b = append(b, make([]byte, 8)...)
	for _, r := range rows {
		b = append(b, 0, 3)
		for _, f := range r {
			if f == nil {
				b = append(b, 0xff, 0xff, 0xff, 0xff)
				continue
			}
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
		}
	}
	return append(b, 0xff, 0xff)
}

// Rows are the same wherever blocks end, and come once more in one piece for each block.
func TestRowsInBlocksOfAnySize(t *testing.T) {
	t.Parallel()
	long := bytes.Repeat([]byte("x"), 100)
	sent := encode([3][]byte{[]byte("a"), nil, {}}, [3][]byte{nil, {0, 0, 0, 0, 0, 0, 0, 7}, long}, [3][]byte{[]byte("b"), {0, 0, 0, 9}, nil})
	for size := 1; size <= len(sent); size++ {
		r := reader{width: 3}
		var got, again []string
		h := Handler{Row: func(r *Row) error {
			got = append(got, string(r.Fields(0, 3)))
			return nil
		}, Block: func(rows []byte) error {
			return Each(rows, 3, func(r *Row) error {
				again = append(again, string(r.Fields(0, 3)))
				return nil
			})
		}}
		for b := sent; len(b) > 0; {
			n := min(size, len(b))
			require.NoError(t, r.feed(b[:n], h))
			b = b[n:]
		}
		require.True(t, r.ended)
		require.Len(t, got, 3)
		require.Equal(t, got, again)
		require.True(t, r.row.Null(2))
		require.Equal(t, "b", string(r.row.Field(0)))
		require.EqualValues(t, 9, r.row.Int4(1))
		require.Zero(t, r.row.Int8(1))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encode([3][]byte{[]byte("a"), nil, {}})[19:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Row
		n, err := r.Parse(b, 3)
		require.LessOrEqual(t, n, len(b))
		if err == nil && n > 0 {
			for i := range 3 {
				require.LessOrEqual(t, len(r.Field(i)), n)
				r.Int4(i)
				r.Int8(i)
			}
		}
		_ = (&reader{width: 3}).feed(b, Handler{Row: func(*Row) error { return nil }})
	})
}
