package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// TestCommandsOnAServer uses the commands the way a user of a server would.
func TestCommandsOnAServer(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "a", Models: []string{"small", "embedder", "m"}, Slots: 8, ServiceTime: time.Millisecond},
		fleet.Spec{ID: "refuses", Models: []string{"refuses"}, Slots: 8})
	f.Device("refuses").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 400})
	p := in.Process(t, "serve")
	env := []string{"BATCHYARD_SERVER=" + p.URL()}
	run := func(t *testing.T, code int, args ...string) harness.RunResult {
		t.Helper()
		ran := harness.Run(t, in.Dir, env, "", args...)
		require.Equalf(t, code, ran.Code, "batchyard %s: %s", strings.Join(args, " "), ran.Stderr)
		return ran
	}

	// The same job twice: the second time, the tasks already exist.
	file, ids := writeLines(t, 300, func(i int) string {
		if i%2 == 0 {
			return chatLine(i)
		}
		return embedLine(i)
	})
	out := filepath.Join(t.TempDir(), "out.jsonl")
	first := run(t, 0, "submit", file, "--wait", "-o", out, "--job", "nightly")
	require.Contains(t, first.Stdout, "SUCCESS")
	require.Equal(t, ids, customIDs(readLines(t, out)))
	asked := f.Device("a").Stats().Requests
	second := filepath.Join(t.TempDir(), "second.jsonl")
	run(t, 0, "submit", file, "--wait", "-o", second, "--job", "nightly")
	require.Equal(t, readLines(t, out), readLines(t, second))
	require.Equal(t, asked, f.Device("a").Stats().Requests, "finished tasks must not run again")

	// A job with a task that fails.
	bad, _ := writeLines(t, 2, func(i int) string {
		return strings.Replace(chatLine(i), `"small"`, []string{`"refuses"`, `"small"`}[i], 1)
	})
	require.Contains(t, run(t, 1, "submit", bad, "--wait", "--job", "bad").Stdout, "FAILED")

	// Lists, as tables and as JSON.
	all := run(t, 0, "tasks", "list", "--job", "nightly", "--all", "--json")
	require.Equal(t, 300, strings.Count(all.Stdout, "\n"))
	for line := range strings.Lines(all.Stdout) {
		require.True(t, json.Valid([]byte(line)))
	}
	require.Contains(t, run(t, 0, "tasks", "list", "--state", "FAILED").Stdout, "FAILED")
	require.Equal(t, 2, run(t, 2, "tasks", "list", "--state", "DONE").Code)

	// Cancel a task that no device can run, and an unknown one.
	waits := harness.Chat("waits")
	waits.Model = "unserved-model"
	p.API().Submit(t, waits)
	run(t, 0, "tasks", "cancel", "waits")
	require.Contains(t, run(t, 1, "tasks", "get", "waits", "--wait", "30s").Stderr, "CANCELLED")
	require.Contains(t, run(t, 1, "tasks", "get", "unknown").Stderr, "no such task")
	run(t, 1, "tasks", "cancel", "waits")

	// An unreachable server.
	gone := harness.Run(t, in.Dir, []string{"BATCHYARD_SERVER=http://" + closed(t)}, "", "tasks", "list")
	oneLine(t, gone, 3, "is the address right?")
}

func TestCommandsWithoutServer(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--help"}, 0, "batchyard run"},
		{[]string{"version"}, 0, "batchyard"},
		{[]string{"version", "--json"}, 0, "{"},
		{[]string{"config", "print", "--commented"}, 0, "topic_prefix"},
		{[]string{"completion", "bash"}, 0, "batchyard"},
		{[]string{"run", "--help"}, 0, "--device"},
		{[]string{"rum"}, 2, ""},
		{[]string{"run"}, 2, ""},
		{[]string{"run", "nowhere.jsonl"}, 2, "nowhere.jsonl"},
		{[]string{"serve", "--no-such-flag"}, 2, "no-such-flag"},
	} {
		t.Run(fmt.Sprint(c.args), func(t *testing.T) {
			t.Parallel()
			ran := harness.Run(t, dir, nil, "", c.args...)
			require.Equalf(t, c.code, ran.Code, "%s", ran.Stderr)
			require.Contains(t, ran.Stdout+ran.Stderr, c.says)
			if c.code != 0 {
				require.Truef(t, strings.HasPrefix(ran.Stderr, "batchyard: "), "%s", ran.Stderr)
				require.Empty(t, ran.Stdout)
			}
		})
	}
	// The printed configuration is valid.
	printed := harness.Run(t, dir, nil, "", "config", "print", "--commented")
	path := filepath.Join(dir, "printed.yaml")
	writeFile(t, path, printed.Stdout)
	require.Zero(t, harness.Run(t, dir, nil, "", "config", "check", "-c", path).Code)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}
