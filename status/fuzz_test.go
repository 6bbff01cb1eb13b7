package status

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

// FuzzParseCursor: a cursor comes from the client.
func FuzzParseCursor(f *testing.F) {
	f.Add(cursor{time.Unix(1_700_000_000, 0).UTC(), "t-1"}.String())
	f.Add("AAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		var c cursor
		var err error
		fuzzing.Bound(t, len(text), func() { c, err = parseCursor(text) })
		if err != nil {
			require.ErrorIs(t, err, ErrBadCursor)
			return
		}
		again, err := parseCursor(c.String())
		require.NoError(t, err)
		require.True(t, c.at.Equal(again.at))
		require.Equal(t, c.id, again.id)
	})
}
