package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// Mistakes are reported before anything is started or run.
func TestRunRefusesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tasks.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(`{"model":"m","input":{"messages":[]}}`+"\n"), 0o600))
	for want, args := range map[string][]string{
		`--device "foo=bar": write NAME=URL`:         {"run", file, "--device", "foo=bar"},
		`--device "foo": write NAME=URL`:             {"run", file, "--device", "foo"},
		`--device "a b=http://127.0.0.1": the name`:  {"run", file, "--device", "a b=http://127.0.0.1"},
		"cannot write results to":                    {"run", file, "-o", filepath.Join(t.TempDir(), "none", "out.jsonl")},
		"it is a directory":                          {"run", file, "-o", t.TempDir()},
		`--device "x=ftp://127.0.0.1": write NAME=`:  {"dev", "--device", "x=ftp://127.0.0.1"},
		"-o - and --json both write to standard out": {"run", file, "-o", "-", "--json"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, cli.ExitUsage, run(t.Context(), newCLI(strings.NewReader(""), &out, &errs), args), args)
		require.Contains(t, errs.String(), want)
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
	}
}

// --timeout reports that it was reached, and how far the job was.
func TestRunThatTakesTooLong(t *testing.T) {
	t.Parallel()
	f := running(t)
	plan, err := jobs.Open(t.Context(), openAIFile(t, 1), nil, jobs.Options{Job: unique("late"), Limits: task.Limits{MaxInput: 1 << 20}})
	require.NoError(t, err)
	defer func() { require.NoError(t, plan.Close()) }()
	ctx, cancel := context.WithDeadlineCause(t.Context(), time.Now(), errors.New("--timeout (4s) passed"))
	defer cancel()
	c, _ := shownAt()
	_, err = runPlan(ctx, c, f.System, plan, "")
	require.EqualError(t, err, "--timeout (4s) passed with 0 of 1 task finished")

	r := try(t, "", "run", openAIFile(t, 1), "--timeout", "1ns")
	require.Contains(t, r.err, "batchyard: --timeout (1ns) passed: ")
}
