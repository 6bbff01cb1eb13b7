package text_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/text"
)

func TestClip(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aü", 2, "a"}, {"aü", 3, "aü"}, {"a\xffb", 9, "ab"}, {"ü", 0, ""},
	} {
		require.Equal(t, c.want, text.Clip(c.in, c.n), "%q to %d bytes", c.in, c.n)
	}
}
