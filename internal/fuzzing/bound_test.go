package fuzzing

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeTB records whether the test failed.
type fakeTB struct {
	testing.TB
	failed bool
}

func (r *fakeTB) Fatalf(string, ...any) { r.failed = true }
func (*fakeTB) Helper()                 {}

var sink []byte

func TestBound(t *testing.T) {
	for _, c := range []struct {
		input, allocates int
		fails            bool
	}{{0, Slack / 2, false}, {0, Slack + 1<<16, true}, {1 << 20, 4 << 20, false}, {1 << 20, 5<<20 + 1<<16, true}} {
		r := &fakeTB{TB: t}
		Bound(r, c.input, func() { sink = make([]byte, c.allocates) })
		require.Equal(t, c.fails, r.failed, "%+v", c)
	}
}
