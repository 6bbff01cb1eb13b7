package task

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestConstraintsRoundTripAndStaySmall(t *testing.T) {
	require.Nil(t, WishesOf(&Task{Model: "m"}).Detail(), "most tasks have none")
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	one := &Task{Needs: []string{"gpu", "eu"}, Level: 7, NotBefore: at.Add(-time.Hour), Progress: &Progress{Exclude: []string{"d1"}, NotBefore: at}}
	require.JSONEq(t, `{"needs":["gpu","eu"],"exclude":["d1"],"not_before":"2026-11-21T12:00:00Z","level":7}`, string(WishesOf(one).Detail()))
	w, ok := ReadWishes(WishesOf(one).Detail())
	require.True(t, ok)
	require.Equal(t, Wishes{Needs: one.Needs, Exclude: []string{"d1"}, NotBefore: at, Level: 7}, w)

	for range MaxNeeds {
		one.Needs = append(one.Needs, strings.Repeat("x", MaxNameLength))
		one.Progress.Exclude = append(one.Progress.Exclude, strings.Repeat("y", 128))
	}
	b := WishesOf(one).Detail()
	require.NotEmpty(t, b)
	require.LessOrEqual(t, len(b), MaxDetail)
	w, ok = ReadWishes(b)
	require.True(t, ok)
	require.Equal(t, one.Needs[:4], w.Needs[:4], "the first ones are kept")
	one.Needs = []string{strings.Repeat("\x01", 1000)}
	require.LessOrEqual(t, len(WishesOf(one).Detail()), MaxDetail)
	for _, bad := range []string{"", "[]", `{"needs":7}`, "nonsense"} {
		_, ok := ReadWishes([]byte(bad))
		require.False(t, ok, bad)
	}
	require.NotEmpty(t, Accepted(&Task{Level: 1}, Origin{}, at).Detail)
}
