package offsets

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

func spansGen(base int64) *rapid.Generator[[]Span] {
	return rapid.Custom(func(t *rapid.T) []Span {
		at := base
		var spans []Span
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			first := at + rapid.Int64Range(1, 1<<rapid.IntRange(0, 40).Draw(t, "gap bits")).Draw(t, "gap")
			end := first + rapid.Int64Range(1, 1<<rapid.IntRange(0, 40).Draw(t, "bits")).Draw(t, "length")
			spans = append(spans, Span{first, end})
			at = end
		}
		return spans
	})
}

func TestCommitMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.Int64Range(0, 1<<45).Draw(t, "base")
		spans := spansGen(base).Draw(t, "spans")
		limit := rapid.IntRange(2, MaxMetadata).Draw(t, "limit")
		text, named := Encode(base, spans, limit)
		require.LessOrEqual(t, len(text), limit)
		got, err := Decode(base, text)
		require.NoError(t, err)
		require.LessOrEqual(t, len(got), len(spans))
		require.Len(t, got, named)
		require.True(t, slices.Equal(spans[:len(got)], got))
		if limit == MaxMetadata && len(spans) < 100 {
			require.Len(t, got, len(spans))
		}
	})
}

func TestMetadataNamesTheTopic(t *testing.T) {
	for _, spans := range []string{"", "1:AAEC"} {
		for _, topic := range []string{"", "3fa9"} {
			id, got := CutTopic(OfTopic(topic, spans))
			require.Equal(t, topic, id)
			require.Equal(t, spans, got)
		}
	}
	id, spans := CutTopic("what another tool writes; topic=x")
	require.Empty(t, id)
	require.Equal(t, "what another tool writes; topic=x", spans)
}

func TestMetadataHoldsManyStragglers(t *testing.T) {
	var spans []Span
	for i := range int64(4000) { // every eighth of 32,000 is unfinished
		spans = append(spans, Span{8*i + 1, 8*i + 8})
	}
	text, _ := Encode(0, spans, MaxMetadata)
	require.LessOrEqual(t, len(text), MaxMetadata)
	got, err := Decode(0, text)
	require.NoError(t, err)
	require.Greater(t, len(got), 1500)
}

func FuzzDecodeSpans(f *testing.F) {
	seed, _ := Encode(5, []Span{{7, 9}, {11, 400}}, MaxMetadata)
	f.Add(int64(5), seed)
	f.Add(int64(0), "")
	f.Add(int64(0), "1:____________")
	f.Add(int64(1<<60), "1:gICAgICAgICAAQE")
	f.Fuzz(func(t *testing.T, base int64, text string) {
		base &= 1<<50 - 1
		fuzzing.Bound(t, len(text), func() { _, _ = Decode(base, text) })
		spans, err := Decode(base, text)
		if err != nil {
			return
		}
		at := base
		for _, s := range spans {
			require.GreaterOrEqual(t, s.First, at)
			require.Greater(t, s.End, s.First)
			at = s.End
		}
		written, _ := Encode(base, spans, 4*MaxMetadata)
		again, err := Decode(base, written)
		require.NoError(t, err)
		require.Equal(t, spans, again)
	})
}
