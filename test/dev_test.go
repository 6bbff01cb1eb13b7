package test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// TestDevKilled kills everything at once under load, including the services, twice.
// After each restart, all accepted tasks must continue.
func TestDevKilled(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	const n = 1500
	f, err := fleet.Start(t.Context(), unequalFleet())
	require.NoError(t, err)
	t.Cleanup(f.Close)
	in := harness.Local(t, loadSettings(map[string]any{
		"callbacks.allow_private": true, "devices.lease_ttl": "4s", "workers.backoff_min": "20ms",
	}))
	args := []string{"--data-dir", filepath.Join(in.Dir, "data"), "--listen", "127.0.0.1:0", "--slots", "4", "-v"}
	for _, d := range f.Devices() {
		args = append(args, "--device", d.ID()+"="+d.URL())
	}
	hooks := harness.Hooks(t, harness.Secret, nil)
	var ids []string
	for _, life := range []string{"first", "second"} {
		p := in.Dev(t, args...)
		before := ended(t, in)
		l := submit(t, p.API(), life, hooks.URL, n)
		all := len(ids) + n
		awaitSomeEnded(t, in, before+n/8, all)
		ids = append(ids, l.wait(t)...)
		require.Less(t, ended(t, in), all, "killed too late: all tasks have ended")
		p.Kill(t)
	}
	p := in.Dev(t, args...)
	in.Await(t, ids, 2*harness.Patience)
	in.CheckPromises(t, ids, hooks)
	require.Zero(t, p.Term(t))
}
