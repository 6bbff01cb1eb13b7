package stream

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

func spansGen(base int64) *rapid.Generator[[]span] {
	return rapid.Custom(func(t *rapid.T) []span {
		at := base
		var spans []span
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			first := at + rapid.Int64Range(1, 1<<rapid.IntRange(0, 40).Draw(t, "gap bits")).Draw(t, "gap")
			end := first + rapid.Int64Range(1, 1<<rapid.IntRange(0, 40).Draw(t, "bits")).Draw(t, "length")
			spans = append(spans, span{first, end})
			at = end
		}
		return spans
	})
}

func TestCommitMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.Int64Range(0, 1<<45).Draw(t, "base")
		spans := spansGen(base).Draw(t, "spans")
		limit := rapid.IntRange(2, maxMetadata).Draw(t, "limit")
		text := encodeSpans(base, spans, limit)
		require.LessOrEqual(t, len(text), limit)
		got, err := decodeSpans(base, text)
		require.NoError(t, err)
		require.LessOrEqual(t, len(got), len(spans))
		require.True(t, slices.Equal(spans[:len(got)], got))
		if limit == maxMetadata && len(spans) < 100 {
			require.Len(t, got, len(spans))
		}
	})
}

func TestMetadataHoldsManyStragglers(t *testing.T) {
	var spans []span
	for i := range int64(4000) { // every eighth of 32,000 is unfinished
		spans = append(spans, span{8*i + 1, 8*i + 8})
	}
	text := encodeSpans(0, spans, maxMetadata)
	require.LessOrEqual(t, len(text), maxMetadata)
	got, err := decodeSpans(0, text)
	require.NoError(t, err)
	require.Greater(t, len(got), 1500)
}

func FuzzDecodeSpans(f *testing.F) {
	f.Add(int64(5), encodeSpans(5, []span{{7, 9}, {11, 400}}, maxMetadata))
	f.Add(int64(0), "")
	f.Add(int64(0), "1:____________")
	f.Add(int64(1<<60), "1:gICAgICAgICAAQE")
	f.Fuzz(func(t *testing.T, base int64, text string) {
		base &= 1<<50 - 1
		fuzzing.Bound(t, len(text), func() { _, _ = decodeSpans(base, text) })
		spans, err := decodeSpans(base, text)
		if err != nil {
			return
		}
		at := base
		for _, s := range spans {
			require.GreaterOrEqual(t, s.first, at)
			require.Greater(t, s.end, s.first)
			at = s.end
		}
		again, err := decodeSpans(base, encodeSpans(base, spans, 4*maxMetadata))
		require.NoError(t, err)
		require.Equal(t, spans, again)
	})
}
