package main

import (
	"encoding/json"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// every calls fn for every command that people can see.
func every(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, sub := range cmd.Commands() {
		every(sub, fn)
	}
}

func TestEveryCommandIsExplained(t *testing.T) {
	t.Parallel()
	root := rootCommand(newCLI(strings.NewReader(""), io.Discard, io.Discard))
	seen := 0
	every(root, func(cmd *cobra.Command) {
		seen++
		path := cmd.CommandPath()
		require.NotEmpty(t, cmd.Short, path)
		require.NotEmpty(t, cmd.Example, "%s has no example", path)
		for _, line := range strings.Split(cmd.Example, "\n") {
			require.True(t, strings.HasPrefix(line, "  "), "%s: the example %q is not indented", path, line)
			require.LessOrEqual(t, len(line), 130, "%s: the example %q is too wide", path, line)
		}
		require.True(t, cmd.Runnable(), "%s cannot be run", path)
		if cmd.HasParent() && cmd.Parent() == root {
			require.NotEmpty(t, cmd.GroupID, "%s is in no group", path)
		}
	})
	require.Greater(t, seen, 25)
}

// An example that does not parse teaches the wrong thing.
func TestExamplesParse(t *testing.T) {
	t.Parallel()
	root := rootCommand(newCLI(strings.NewReader(""), io.Discard, io.Discard))
	tried := 0
	every(root, func(cmd *cobra.Command) {
		text := strings.ReplaceAll(cmd.Example, "\\\n", " ")
		for _, line := range strings.Split(text, "\n") {
			_, rest, found := strings.Cut(line, "batchyard ")
			if !found || strings.HasPrefix(strings.TrimSpace(line), "source") {
				continue
			}
			rest, _, _ = strings.Cut(rest, " | ")
			rest, _, _ = strings.Cut(rest, " > ")
			rest, _, _ = strings.Cut(rest, " &")
			args := strings.Fields(rest)
			// Each on a tree of its own: flags keep what was parsed.
			fresh := rootCommand(newCLI(strings.NewReader(""), io.Discard, io.Discard))
			found2, left, err := fresh.Find(args)
			require.NoError(t, err, line)
			require.NotEqual(t, fresh, found2, "%q names no command", line)
			require.NoError(t, found2.ParseFlags(left), line)
			tried++
		}
	})
	require.Greater(t, tried, 25)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "run", "submit", "jobs list", "jobs watch", "jobs results", "tasks list", "dlq replay", "config print", "agent", "policy set", "tasks set-priority"} {
		t.Run(strings.ReplaceAll("batchyard "+name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			got := ok(t, append(strings.Fields(name), "--help")...)
			path := filepath.Join("testdata", "help", strings.TrimSpace(strings.ReplaceAll("batchyard "+name, " ", "_"))+".txt")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err, "run go test ./cmd/batchyard -update")
			require.Equal(t, string(want), got)
		})
	}
}

func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.Contains(t, ok(t, "completion", shell), "batchyard", shell)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		"tasks list --state ":     {"PENDING", "SUCCESS", "EXPIRED"},
		"submit --priority ":      {"high", "normal", "low"},
		"dlq list --stage ":       {"router", "workers"},
		"dlq replay --topic ":     {"tasks.normal", "batches"},
		"serve ":                  {"api", "callbacks"},
		"serve router ":           {"api"},
		"tasks ":                  {"get", "list", "cancel", "why"},
		"tasks set-priority x ":   {"high", "normal", "low"},
		"policy set ":             {"power_of_two", "expected_finish"},
		"policy set x --binding ": {"auto", "late", "early"},
		"completion ":             {"bash", "zsh", "fish", "powershell"},
		"migrate up --config nix": {":8"}, // files with these extensions
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		got := ok(t, args...)
		for _, w := range want {
			require.Contains(t, got, w, line)
		}
	}
	require.NotContains(t, ok(t, "__complete", "serve", "router", ""), "router\n")
}

// closedPort is an address on which no process listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	gone := "http://" + closedPort(t)
	good := write(t, "tasks.jsonl", `{"model":"m","input":{"messages":[]}}`+"\n")
	bad := write(t, "bad.jsonl", "{\"model\":\"m\",\"input\":{}}\n\nnonsense\n{\"input\":{}}\n")
	away := write(t, "away.yaml", "kafka:\n  brokers: [\""+closedPort(t)+"\"]\n  dial_timeout: 500ms\npostgres:\n  url: postgres://u:secretword@"+closedPort(t)+"/d\n")
	wrong := write(t, "wrong.yaml", "kafka:\n  brokrs: [a]\n  partitions: many\n")
	for name, c := range map[string]struct {
		args  []string
		code  int
		says  string
		lines int
	}{
		"unknown command":        {[]string{"frobnicate"}, 2, `unknown command "frobnicate"`, 1},
		"unknown command, near":  {[]string{"tsaks"}, 2, "did you mean tasks?", 1},
		"unknown subcommand":     {[]string{"tasks", "lst"}, 2, "did you mean get or list?", 1},
		"unknown flag":           {[]string{"tasks", "list", "--nope"}, 2, "unknown flag: --nope; see `batchyard tasks list --help`", 1},
		"bad flag value":         {[]string{"tasks", "get", "x", "--wait", "long"}, 2, "--wait", 1},
		"missing argument":       {[]string{"tasks", "get"}, 2, "tasks get needs ID", 1},
		"too many arguments":     {[]string{"tasks", "get", "a", "b"}, 2, `tasks get takes only ID: remove "b"`, 1},
		"no arguments wanted":    {[]string{"version", "now"}, 2, `version takes only flags: remove "now"`, 1},
		"bad state":              {[]string{"tasks", "list", "--state", "DONE"}, 2, `"DONE" is not a state`, 1},
		"bad limit":              {[]string{"tasks", "list", "--limit", "0"}, 2, "--limit", 1},
		"limit and all of tasks": {[]string{"tasks", "list", "--limit", "5", "--all"}, 2, "--limit and --all cannot be combined", 1},
		"limit and all of dlq":   {[]string{"dlq", "list", "--limit", "5", "--all"}, 2, "--limit and --all cannot be combined", 1},
		"limit and all of audit": {[]string{"audit", "query", "--limit", "5", "--all"}, 2, "--limit and --all cannot be combined", 1},
		"empty output":           {[]string{"audit", "export", "-o", ""}, 2, "-o is empty", 1},
		"filter is no text":      {[]string{"audit", "query", "--task", "a\xffb"}, 2, `"--task" flag: it must be UTF-8 text`, 1},
		"filter with a NUL":      {[]string{"audit", "tail", "--actor", "a\x00b"}, 2, `"--actor" flag: it must be UTF-8 text`, 1},
		"empty filter":           {[]string{"audit", "query", "--task", ""}, 2, `"--task" flag: it is empty`, 1},
		"empty since":            {[]string{"audit", "export", "--since", ""}, 2, `"--since" flag: it is empty`, 1},
		"empty since of verify":  {[]string{"audit", "verify", "--since", ""}, 2, `"--since" flag: it is empty`, 1},
		"empty until":            {[]string{"audit", "query", "--until", ""}, 2, `"--until" flag: it is empty`, 1},
		"empty postgres":         {[]string{"ledger", "check", "--postgres", ""}, 2, `"--postgres" flag: it is empty`, 1},
		"since before all time":  {[]string{"audit", "query", "--since", "9999999d"}, 2, "--since 9999999d is too long ago", 1},
		"negative ledger wait":   {[]string{"ledger", "check", "--wait", "-1s"}, 2, "--wait must not be negative\n", 1},
		"no ledger problems":     {[]string{"ledger", "check", "--problems", "-1"}, 2, "--problems must", 1},
		"no such directory":      {[]string{"ledger", "check", "--dir", "/does/not/exist"}, 2, "--dir /does/not/exist: not a directory", 1},
		"negative timeout":       {[]string{"run", good, "--timeout", "-1s"}, 2, "--timeout must not be negative", 1},
		"bad server":             {[]string{"tasks", "list", "--server", "ftp://u:secretword@x"}, 2, "--server must look like", 1},
		"bad tenant":             {[]string{"tasks", "list", "--tenant", "a\nb"}, 2, "--tenant", 1},
		"bad position":           {[]string{"dlq", "show", "3-42"}, 2, `invalid position "3-42"`, 1},
		"bad stage":              {[]string{"dlq", "list", "--stage", "ruoter"}, 2, `unknown stage "ruoter": use api, router`, 1},
		"bad topic":              {[]string{"dlq", "replay", "--topic", "taks.high"}, 2, `unknown topic "taks.high": use tasks.high`, 1},
		"bad since":              {[]string{"dlq", "list", "--since", "-1h"}, 2, "negative", 1},
		"no priority":            {[]string{"tasks", "set-priority", "x"}, 2, "needs a priority, --level or both", 1},
		"wrong priority":         {[]string{"tasks", "set-priority", "x", "urgent"}, 2, `unknown priority "urgent": use high, normal or low`, 1},
		"wrong level":            {[]string{"tasks", "set-priority", "x", "--level", "10"}, 2, "0 to 9", 1},
		"wrong weight":           {[]string{"policy", "set", "load_formula", "--weight", "cpu=much"}, 2, "not a number", 1},
		"no policy":              {[]string{"policy", "set"}, 2, "needs POLICY", 1},
		"server away for drain":  {[]string{"devices", "drain", "x", "y", "--server", gone}, 3, "is it running", 1},
		"server away for why":    {[]string{"tasks", "why", "x", "--server", gone}, 3, "is it running", 1},
		"server away for get":    {[]string{"tasks", "get", "x", "--server", gone}, 3, "task x: connecting", 1},
		"replay of nothing":      {[]string{"dlq", "replay"}, 2, "needs positions", 1},
		"replay of both":         {[]string{"dlq", "replay", "1@1", "--all"}, 2, "not both", 1},
		"agent without device":   {[]string{"agent"}, 2, "needs --device NAME=URL", 1},
		"agent with bad url":     {[]string{"agent", "--device", "d=nope"}, 2, `--device d: url: `, 1},
		"agent without its key":  {[]string{"agent", "--device", "d=http://h,key_env=NOT_SET_HERE"}, 2, "NOT_SET_HERE is empty", 1},
		"agent of two elsewhere": {[]string{"agent", "--device", "a=http://h", "--device", "b=http://h", "--advertise", "http://i"}, 2, "start an agent for each", 1},
		"out without wait":       {[]string{"submit", good, "-o", "x"}, 2, "-o needs --wait", 1},
		"bad endpoint":           {[]string{"submit", good, "--endpoint", "/v1/messages"}, 2, `unknown endpoint "/v1/messages": use /v1/chat/completions, `, 1},
		"bad endpoint of a run":  {[]string{"run", good, "--endpoint", "ftp"}, 2, `unknown endpoint "ftp": use`, 1},
		"bad priority":           {[]string{"submit", good, "--priority", "urgent"}, 2, `unknown priority "urgent": use high, normal or low`, 1},
		"both to stdout":         {[]string{"submit", good, "--wait", "-o", "-", "--json"}, 2, "choose one", 1},
		"no such file":           {[]string{"submit", "/does/not/exist"}, 2, "/does/not/exist", 1},
		"bad lines":              {[]string{"submit", bad, "--server", gone}, 2, "bad.jsonl:3:", 2},
		"server away":            {[]string{"submit", good, "--server", gone}, 3, "is it running", 1},
		"server away for jobs":   {[]string{"jobs", "list", "--server", gone}, 3, "is it running", 1},
		"resume of nothing":      {[]string{"run", good, "--resume"}, 2, "--resume needs --data-dir", 1},
		"bad label":              {[]string{"submit", good, "--label", "x", "--server", gone}, 2, "write NAME=VALUE", 1},
		"bad lines to nowhere":   {[]string{"submit", good, "--bad-lines", "x"}, 2, "--bad-lines needs --skip-bad-lines", 1},
		"server away for a list": {[]string{"tasks", "list", "--server", gone}, 3, "is it running", 1},
		"server away for cancel": {[]string{"tasks", "cancel", "x", "y", "--server", gone}, 3, "is it running", 1},
		"kafka away":             {[]string{"topics", "list", "-c", away}, 3, "check kafka.brokers", 1},
		"kafka away for dlq":     {[]string{"dlq", "list", "-c", away}, 3, "check kafka.brokers", 1},
		"postgres away":          {[]string{"migrate", "status", "-c", away}, 3, "check postgres.url", 1},
		"unknown keys":           {[]string{"config", "check", "-c", wrong}, 2, "did you mean kafka.brokers?", 2},
		"no such config":         {[]string{"config", "check", "-c", "/does/not/exist.yaml"}, 2, "/does/not/exist.yaml", 1},
		"print of two forms":     {[]string{"config", "print", "--commented", "--markdown"}, 2, "cannot be combined", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := try(t, "", c.args...)
			require.Equal(t, c.code, r.code, r.err)
			require.Contains(t, r.err, c.says)
			require.NotContains(t, r.err, "secretword")
			told := 0
			for _, line := range lines(r.err) {
				if strings.HasPrefix(line, "submitting: ") {
					continue
				}
				require.True(t, strings.HasPrefix(line, "batchyard: "), "%q", line)
				told++
			}
			require.Equal(t, c.lines, told, r.err)
			require.Empty(t, r.out, "errors and usage do not go to standard output")
		})
	}
}

func TestGroupsShowTheirHelp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tasks", "jobs", "dlq", "devices", "topics", "migrate", "config", "policy"} {
		require.Contains(t, ok(t, name), "Available Commands:", name)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	require.True(t, strings.HasPrefix(ok(t, "version"), "batchyard "))
	require.Equal(t, ok(t, "version"), ok(t, "--version"))
	require.Equal(t, ok(t, "version"), ok(t, "-v"))
	var b build
	require.NoError(t, json.Unmarshal([]byte(ok(t, "version", "--json")), &b))
	require.Equal(t, batchyard.Version, b.Version, "a build without a version of its own has the module's")
	require.NotEmpty(t, b.Go)
}

func TestConfigPrint(t *testing.T) {
	t.Parallel()
	path := write(t, "c.yaml", "kafka:\n  partitions: 7\npostgres:\n  url: postgres://u:secretword@h/d\n")
	plainText := ok(t, "config", "print", "-c", path)
	require.Contains(t, plainText, "partitions: 7")
	commented := ok(t, "config", "print", "--commented")
	require.Contains(t, commented, "# ")
	require.Contains(t, commented, "partitions: 12", "the reference holds the defaults")
	require.Contains(t, ok(t, "config", "print", "--markdown"), "|")
	raw := ok(t, "config", "print", "--json", "-c", path)
	var settings map[string]map[string]any
	_ = json.Unmarshal([]byte(raw), &settings) // settings at the root are not sections
	require.EqualValues(t, 7, settings["kafka"]["partitions"])
	for _, text := range []string{plainText, raw, ok(t, "config", "print", "--commented", "-c", path)} {
		require.NotContains(t, text, "secretword")
		require.Contains(t, text, "***")
	}
	// What it printed is a valid configuration.
	require.Contains(t, ok(t, "config", "check", "-c", write(t, "again.yaml", commented)), "valid")
}

func TestConfigCheckJSON(t *testing.T) {
	t.Parallel()
	r := try(t, "", "config", "check", "--json", "-c", write(t, "c.yaml", "nope: 1\nkafka:\n  partitions: -1\n"))
	require.Equal(t, cli.ExitUsage, r.code)
	var c checked
	require.NoError(t, json.Unmarshal([]byte(r.out), &c))
	require.False(t, c.OK)
	require.Len(t, c.Errors, 2)
	require.NoError(t, json.Unmarshal([]byte(ok(t, "config", "check", "--json", "-c", write(t, "ok.yaml", "kafka:\n  partitions: 3\n"))), &c))
	require.True(t, c.OK)
}
