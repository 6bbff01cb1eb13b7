package tracker

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// The set is compared to a map.
func TestSetAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.Int64Range(0, 3*pageBits).Draw(t, "base")
		offset := rapid.Custom(func(t *rapid.T) int64 {
			near := base + rapid.Int64Range(0, 200).Draw(t, "near")
			return near + pageBits*rapid.Int64Range(0, 4).Draw(t, "page")
		})
		var s Set
		model := map[int64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				from, n := offset.Draw(t, "offset"), rapid.Int64Range(1, 130).Draw(t, "n")
				for o := from; o < from+n; o++ {
					s.Add(o)
					model[o] = true
				}
			},
			"remove": func(t *rapid.T) {
				from, n := offset.Draw(t, "offset"), rapid.Int64Range(1, 300).Draw(t, "n")
				for o := from; o < from+n; o++ {
					if s.Remove(o) != model[o] {
						t.Fatalf("removing %d", o)
					}
					delete(model, o)
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(model), s.Len())
				high := base + 6*pageBits
				var gaps []offsets.Span
				for o := base; o < high; o++ {
					if model[o] != s.Has(o) {
						t.Fatalf("offset %d: %v", o, s.Has(o))
					}
					switch n := len(gaps); {
					case model[o]:
					case n > 0 && gaps[n-1].End == o:
						gaps[n-1].End++
					default:
						gaps = append(gaps, offsets.Span{First: o, End: o + 1})
					}
				}
				require.Equal(t, gaps, s.Gaps(base, high, 1<<20))
				require.Equal(t, gaps[:1], s.Gaps(base, high, 1))
				lowest, ok := s.Next(0)
				require.Equal(t, len(model) > 0, ok)
				require.True(t, !ok || model[lowest])
			},
		})
	})
}
