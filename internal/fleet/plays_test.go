package fleet

import (
	"errors"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A device plays, answers well again, and keeps its port meanwhile.
func TestPlaysBeginAndEnd(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Slots: 4})
	c.Timeout = 300 * time.Millisecond
	d := f.Device("a")
	url := d.URL() + "/v1/chat/completions"
	seen := map[string]bool{}
	for _, p := range Plays() {
		require.False(t, seen[p.Name], p.Name)
		seen[p.Name] = true
		require.NotEmpty(t, p.Says)
		if p.Away == AwayBlackhole && runtime.GOOS != "linux" {
			continue
		}
		found, err := FindPlay(p.Name)
		require.NoError(t, err)
		require.Equal(t, p.Says, found.Says)
		require.NoError(t, d.Play(p), p.Name)
		require.Equal(t, p.Name, d.Playing())
		c.CloseIdleConnections()
		if p.Fault.Kind == Reply && p.Fault.Endpoint == "" && p.Fault.Status/100 != 3 {
			r := post(t.Context(), c, url, hello)
			require.NoError(t, r.err)
			require.Equal(t, p.Fault.Status, r.status)
			if p.Fault.Until > 0 {
				at, err := http.ParseTime(r.header.Get("Retry-After"))
				require.NoError(t, err)
				require.WithinDuration(t, time.Now().Add(p.Fault.Until), at, time.Minute)
			}
		}
		switch p.Away {
		case AwayStopped:
			require.ErrorIs(t, post(t.Context(), c, url, hello).err, syscall.ECONNREFUSED)
		case AwayBlackhole:
			var timeout interface{ Timeout() bool }
			r := post(t.Context(), c, url, hello)
			require.True(t, errors.As(r.err, &timeout) && timeout.Timeout(), "%v", r.err)
		case AwayNoTLS:
			require.True(t, strings.HasPrefix(d.URL(), "https:"))
		}
		require.NoError(t, d.Play(Play{}))
		c.CloseIdleConnections()
		require.Equal(t, 200, post(t.Context(), c, url, hello).status, "after %s", p.Name)
	}
	require.NoError(t, d.Play(Play{Limits: Limits{MaxBody: 5}}))
	require.Equal(t, 413, post(t.Context(), c, url, hello).status)
	_, err := FindPlay("nothing like it")
	require.ErrorContains(t, err, "connect_timeout, tls, ")

	_, err = Start(t.Context(), []Spec{{ID: "b", Port: d.port}})
	require.Error(t, err, "the port is taken")
}
