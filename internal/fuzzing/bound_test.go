package fuzzing

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Fatalf(string, ...any) { r.failed = true }
func (*recorder) Helper()                 {}

var sink []byte

func TestBound(t *testing.T) {
	for _, c := range []struct {
		input, takes int
		fails        bool
	}{{0, Slack / 2, false}, {0, Slack + 1<<16, true}, {1 << 20, 4 << 20, false}, {1 << 20, 5<<20 + 1<<16, true}} {
		r := &recorder{TB: t}
		Bound(r, c.input, func() { sink = make([]byte, c.takes) })
		require.Equal(t, c.fails, r.failed, "%+v", c)
	}
}
