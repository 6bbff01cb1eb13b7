//go:build unix

package jobs

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOutputToAPipe writes to a named pipe, which must stay one.
func TestOutputToAPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	path := write(t, strings.Repeat(`{"model":"m","input":{}}`+"\n", 3))
	p, err := Open(t.Context(), path, nil, Options{})
	require.NoError(t, err)
	defer p.Close()
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))

	require.NoError(t, CheckOutput(pipe))
	got := make(chan string, 1)
	go func() {
		f, err := os.Open(pipe)
		if err != nil {
			got <- err.Error()
			return
		}
		defer f.Close()
		b, _ := io.ReadAll(f)
		got <- string(b)
	}()
	s, err := p.WriteResults(t.Context(), resultsOf(&c), pipe, nil)
	require.NoError(t, err)
	require.Equal(t, 3, s.Written)
	require.Equal(t, 3, strings.Count(<-got, "\n"))
	info, err := os.Stat(pipe)
	require.NoError(t, err)
	require.Equal(t, os.ModeNamedPipe, info.Mode().Type())
	require.NoFileExists(t, pipe+".part")
}
