package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What cannot be right is said before anything is started or run.
func TestRunRefusesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tasks.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(`{"model":"m","input":{"messages":[]}}`+"\n"), 0o600))
	for want, args := range map[string][]string{
		`--device "foo=bar": write NAME=URL`:         {"run", file, "--device", "foo=bar"},
		`--device "foo": write NAME=URL`:             {"run", file, "--device", "foo"},
		`--device "a b=http://127.0.0.1": the name`:  {"run", file, "--device", "a b=http://127.0.0.1"},
		"the results cannot be written to":           {"run", file, "-o", filepath.Join(t.TempDir(), "none", "out.jsonl")},
		"it is a directory":                          {"run", file, "-o", t.TempDir()},
		`--device "x=ftp://127.0.0.1": write NAME=`:  {"dev", "--device", "x=ftp://127.0.0.1"},
		"-o - and --json both write to standard out": {"run", file, "-o", "-", "--json"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitUsage, newCLI(strings.NewReader(""), &out, &errs).run(t.Context(), args), args)
		require.Contains(t, errs.String(), want)
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
	}
}
