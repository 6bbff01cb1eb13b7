package device

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContexts(t *testing.T) {
	t.Parallel()
	d := Device{ID: "d", URL: "http://d", Models: []string{"own", "*"}, Aliases: map[string]string{"nice": "own"}, Context: map[string]int{"own": 100, AnyModel: 7}}
	d.Normalize()
	require.NoError(t, d.Validate())
	h := Health{Context: map[string]int{"nice": 60, "other": 50}}
	require.Equal(t, []int{60, 100, 50, 7}, []int{d.ContextOf(&h, "nice"), d.ContextOf(&h, "own"), d.ContextOf(&h, "other"), d.ContextOf(&h, "x")})
	require.Equal(t, map[string]int{"own": 60, AnyModel: 7, "other": 50}, d.Contexts(&h), "by its own names")
	require.Equal(t, 100, d.Context["own"], "and the device is as before")
	require.Empty(t, (&Device{}).Contexts(&Health{}))
	for _, wrong := range []map[string]int{{"own": 0}, {"own": MaxContext + 1}, {"": 1}} {
		d.Context = wrong
		require.ErrorContains(t, d.Validate(), "context")
	}
}
