package clean

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/pg"
)

// TestCleanTexts compares the fast paths with the thorough ones.
func TestCleanTexts(t *testing.T) {
	texts := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,12}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	rapid.Check(t, func(t *rapid.T) {
		was, most := texts.Draw(t, "text"), rapid.IntRange(0, 12).Draw(t, "most")
		s := was
		fit(&s, most)
		require.Equal(t, pg.Truncate(was, most), s)
		require.True(t, pg.Fits(s, most), "Postgres cannot store %q", s)
		if utf8.ValidString(was) && strings.IndexByte(was, 0) < 0 && utf8.RuneCountInString(was) <= most {
			require.Equal(t, was, s, "nothing had to be changed")
		}
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		require.Equal(t, at.UTC().Truncate(time.Microsecond), Micro(at))
	})
	require.Equal(t, time.UTC, Micro(time.Now()).Location())
}
