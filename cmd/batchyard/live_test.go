package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/dlqcmd"
	"github.com/batchyard/batchyard/cmd/internal/migratecmd"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// unique is a name that no other test, and no other run of the same, has.
func unique(name string) string { return name + "-" + strings.ToLower(rand.Text()[:8]) }

// openAIFile is a file of lines in OpenAI's batch format.
func openAIFile(t *testing.T, n int) string {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"custom_id":"c%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%d"}]}}`+"\n", i, i)
	}
	return write(t, "tasks.jsonl", b.String())
}

func TestSubmitAndWait(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("waits")
	out := filepath.Join(t.TempDir(), "out.jsonl")
	text := ok(t, "submit", openAIFile(t, 30), "--server", f.URL, "--tenant", tenant, "--job", "j", "--wait", "-o", out)
	require.Regexp(t, `tasks +30\n +SUCCESS +30\n`, text)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	for i, line := range lines(string(b)) {
		require.Contains(t, line, fmt.Sprintf(`"custom_id":"c%d"`, i))
	}
	require.Len(t, lines(string(b)), 30)

	seen := map[string]bool{}
	for _, line := range lines(ok(t, "tasks", "list", "--server", f.URL, "--tenant", tenant, "--job", "j", "--state", "success", "--all", "--json")) {
		var s api.Status
		require.NoError(t, json.Unmarshal([]byte(line), &s))
		require.Equal(t, task.Success, s.State)
		seen[s.ID] = true
	}
	require.Len(t, seen, 30)
	r := try(t, "", "tasks", "list", "--server", f.URL, "--tenant", tenant, "--limit", "7")
	require.Equal(t, cli.ExitOK, r.code)
	require.Len(t, lines(r.out), 8)
	require.Contains(t, r.err, "there are more")
	require.Contains(t, try(t, "", "tasks", "list", "--server", f.URL, "--tenant", "no-such-tenant").err, "no task matches")
}

func TestSubmitThatFails(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("fails")
	// No device has the tag, and the deadline comes first.
	soon := time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	stdin := `{"task_id":"never","model":"m","needs":["no-such-tag"],"deadline":"` + soon + `","input":{"messages":[{"role":"user","content":"1+1?"}]}}` + "\n" + `{"model":"m","input":{"messages":[{"role":"user","content":"1+1?"}]}}` + "\n"
	r := try(t, stdin, "submit", "-", "--server", f.URL, "--tenant", tenant, "--wait", "--json")
	require.Equal(t, cli.ExitFailed, r.code, r.err)
	var s summary
	require.NoError(t, json.Unmarshal([]byte(r.out), &s))
	require.Equal(t, map[task.State]int{task.Success: 1, task.Expired: 1}, s.ByState)
	require.Contains(t, r.err, "1 of 2 tasks")

	r = try(t, "", "tasks", "get", "never", "--server", f.URL, "--tenant", tenant, "--wait", "10s")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.out, "EXPIRED")
}

func TestTasksGet(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("gets")
	file := write(t, "one.jsonl", `{"task_id":"a/b c?","model":"m","priority":"high","input":{"messages":[{"role":"user","content":"1+1?"}]}}`+"\n")
	var in submitted
	require.NoError(t, json.Unmarshal([]byte(ok(t, "submit", file, "--server", f.URL, "--tenant", tenant, "--json")), &in))
	require.Equal(t, 1, in.Tasks)
	text := ok(t, "tasks", "get", "a/b c?", "--server", f.URL, "--tenant", tenant, "--wait", "30s", "--events")
	require.Regexp(t, `state +SUCCESS`, text)
	require.Regexp(t, `finished +\S+ ago`, text)
	for _, action := range []task.Action{task.TaskAccepted, task.TaskAssigned, task.AttemptStarted} {
		require.Contains(t, text, string(action))
	}
	require.Eventually(t, func() bool { // the result may be recorded before the event that reports it
		text := try(t, "", "tasks", "get", "a/b c?", "--server", f.URL, "--tenant", tenant, "--events").out
		return strings.Contains(text, string(task.TaskSucceeded))
	}, 30*time.Second, 50*time.Millisecond)
	var both struct {
		Task   api.Status
		Events []api.TaskEvent
	}
	require.NoError(t, json.Unmarshal([]byte(ok(t, "tasks", "get", "a/b c?", "--server", f.URL, "--tenant", tenant, "--events", "--json")), &both))
	require.Equal(t, task.High, both.Task.Priority)
	require.NotEmpty(t, both.Events)

	r := try(t, "", "tasks", "get", "no-such-task", "--server", f.URL, "--tenant", tenant)
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.err, "no such task")
}

func TestTasksCancel(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("cancels")
	file := write(t, "one.jsonl", `{"task_id":"waits","model":"m","needs":["no-such-tag"],"input":{"messages":[{"role":"user","content":"1+1?"}]}}`+"\n")
	ok(t, "submit", file, "--server", f.URL, "--tenant", tenant)
	require.Contains(t, ok(t, "tasks", "cancel", "waits", "--server", f.URL, "--tenant", tenant), "asked to stop")
	r := try(t, "", "tasks", "get", "waits", "--server", f.URL, "--tenant", tenant, "--wait", "30s", "--json")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.out, `"CANCELLED"`)
	r = try(t, "", "tasks", "cancel", "waits", "no-such-task", "--server", f.URL, "--tenant", tenant, "--json")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Len(t, lines(r.out), 2, "one that cannot be cancelled does not hold up the next")
	var c cancelled
	require.NoError(t, json.Unmarshal([]byte(lines(r.out)[0]), &c))
	require.Equal(t, cancelled{ID: "waits", State: task.Cancelled, Error: c.Error}, c)
}

func TestDevicesList(t *testing.T) {
	t.Parallel()
	f := running(t)
	id := unique("cli-test")
	registry := store.NewRegistry(f.App.Redis, f.Config.Devices.Config, f.Config.Redis.Prefix)
	_, err := registry.Beat(t.Context(), device.Device{ID: id, URL: "http://127.0.0.1:9", Models: []string{"none"}, Slots: 3, Draining: true, Queue: -1, InFlight: -1, Weight: 1})
	require.NoError(t, err)
	require.Regexp(t, id+` +draining +\S+ ago +3 +0 +0 +0% +- +-`, ok(t, "devices", "list", "--server", f.URL))
	found := false
	for _, line := range lines(ok(t, "devices", "list", "--server", f.URL, "--json")) {
		var d api.DeviceStatus
		require.NoError(t, json.Unmarshal([]byte(line), &d))
		found = found || d.ID == id && d.Draining
	}
	require.True(t, found)
}

func TestDevicesDrain(t *testing.T) {
	t.Parallel()
	f := running(t)
	id := unique("cli-drain")
	registry := store.NewRegistry(f.App.Redis, f.Config.Devices.Config, f.Config.Redis.Prefix)
	_, err := registry.Beat(t.Context(), device.Device{ID: id, URL: "http://127.0.0.1:9", Models: []string{"none"}, Slots: 3, Queue: -1, InFlight: -1, Weight: 1})
	require.NoError(t, err)
	require.Equal(t, "device "+id+": drained\n", ok(t, "devices", "drain", id, "--server", f.URL))
	require.Equal(t, "device "+id+": drained, no change\n", ok(t, "devices", "drain", id, "--server", f.URL))
	require.Regexp(t, id+` +draining +\S+ ago +3 .*an operator drained it`, ok(t, "devices", "list", "--server", f.URL))
	require.NoError(t, registry.Leave(t.Context(), id))
	r := try(t, "", "devices", "list", "--server", f.URL)
	require.Regexp(t, "device "+id+` was drained \S+ ago, and is unknown now`, r.err)
	r = try(t, "", "devices", "undrain", "no-such-device", id, "--server", f.URL, "--json")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.err, "device no-such-device: unknown device")
	require.JSONEq(t, `{"device_id":"`+id+`","drained":false,"changed":true}`, r.out, "an unknown device does not hold up the next")
}

// The only test here that changes the policy of the shared Batchyard; all
// policies run the others' tasks.
func TestPolicy(t *testing.T) {
	t.Parallel()
	f := running(t)
	require.Regexp(t, `policy +expected_finish\nbinding +auto\nset by +the configuration\n`, ok(t, "policy", "get", "--server", f.URL))
	text := ok(t, "policy", "set", "load_formula", "--weight", "cpu=0.6,mem=0.4", "--server", f.URL, "--tenant", "ops")
	require.Regexp(t, `policy +load_formula\nbinding +auto\nweights +cpu 0.6, mem 0.4\nset by +ops, \S+ ago\notherwise +expected_finish, auto\n`, text)
	require.Regexp(t, `weights +preset edge\n`, ok(t, "policy", "set", "load_formula", "--preset", "edge", "--server", f.URL))
	var st api.PolicyStatus
	require.NoError(t, json.Unmarshal([]byte(ok(t, "policy", "get", "--server", f.URL, "--json")), &st))
	require.Equal(t, "operator", st.Source)
	r := try(t, "", "policy", "set", "best", "--server", f.URL)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, `policy: "best" is not a policy; use one of expected_finish,`)
	require.Contains(t, ok(t, "policy", "reset", "--server", f.URL), "the configuration")
}

func TestTasksWhyAndPriority(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("why")
	file := write(t, "one.jsonl", `{"task_id":"waits","model":"m","priority":"low","needs":["no-such-tag"],"input":{"messages":[{"role":"user","content":"1+1?"}]}}`+"\n"+
		`{"task_id":"runs","model":"m","input":{"messages":[{"role":"user","content":"1+1?"}]}}`+"\n")
	ok(t, "submit", file, "--server", f.URL, "--tenant", tenant)
	at := []string{"--server", f.URL, "--tenant", tenant}
	require.Eventually(t, func() bool { // it is in Postgres that a router has read it
		return strings.Contains(try(t, "", append([]string{"tasks", "why", "waits"}, at...)...).out, "lack tags that it needs")
	}, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, "task waits (PENDING): low level 0 → high level 7\n", ok(t, append([]string{"tasks", "set-priority", "waits", "high", "--level", "7"}, at...)...))
	require.Contains(t, ok(t, append([]string{"tasks", "why", "waits"}, at...)...), "with priority high and level 7")
	var w api.Why
	require.NoError(t, json.Unmarshal([]byte(ok(t, append([]string{"tasks", "why", "waits", "--json"}, at...)...)), &w))
	require.Positive(t, w.Waiting.Out["tags"])

	ok(t, append([]string{"tasks", "get", "runs", "--wait", "30s"}, at...)...)
	require.Eventually(t, func() bool { // the result may be recorded before the event that reports it
		return strings.Contains(try(t, "", append([]string{"tasks", "why", "runs"}, at...)...).out, "it was answered after")
	}, 30*time.Second, 50*time.Millisecond)
	require.Regexp(t, `^It ran on \S+\. Attempt 1 went to \S+ by \w+, out of \d+ devices that could run it, because `, ok(t, append([]string{"tasks", "why", "runs"}, at...)...))
	r := try(t, "", append([]string{"tasks", "set-priority", "runs", "high"}, at...)...)
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.err, "has already finished as SUCCESS")
	for _, how := range []string{"why", "get"} {
		r = try(t, "", append([]string{"tasks", how, "no-such-task"}, at...)...)
		require.Equal(t, cli.ExitFailed, r.code)
		require.Contains(t, r.err, "task no-such-task: ", how)
	}
}

// bury puts a record into the dead letters as a stage would.
func bury(t *testing.T, f *fixture, from, key, value, reason string) {
	t.Helper()
	m := records.DeadLetter(&stream.Record{
		Topic: from, Partition: 1, Offset: 7, Key: []byte(key), Value: []byte(value),
		Headers: []stream.Header{{Key: "content-type", Value: []byte("application/json")}, {Key: "mine", Value: []byte("kept\x1b")}},
	}, "router", reason, fmt.Errorf("a test buried it"))
	require.NoError(t, f.App.Log.Produce(t.Context(), m))
}

// letters are the dead letters with this reason.
func letters(t *testing.T, f *fixture, reason string) []dlqcmd.Letter {
	t.Helper()
	var out []dlqcmd.Letter
	for _, line := range lines(ok(t, "dlq", "list", "-c", f.config, "--all", "--json", "--reason", reason)) {
		var l dlqcmd.Letter
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		out = append(out, l)
	}
	return out
}

func TestDLQReplay(t *testing.T) {
	t.Parallel()
	f, reason, tenant := running(t), unique("replay"), unique("dlq")
	for i := range 3 {
		id := fmt.Sprintf("buried-%d", i)
		bury(t, f, stream.TasksNormal, id, `{"task_id":"`+id+`","tenant":"`+tenant+`","model":"m","input":{"messages":[{"role":"user","content":"1+1?"}]}}`, reason)
	}
	bury(t, f, "somewhere.else", "x", "x", reason)
	all := letters(t, f, reason)
	require.Len(t, all, 4)

	r := try(t, "", "dlq", "replay", "-c", f.config, "--reason", reason, "--dry-run")
	require.Equal(t, cli.ExitFailed, r.code, "one came from a topic that is not ours")
	require.Contains(t, r.out, "3 dead letters to be replayed")

	// One by its position, then all by their reason: the first is replayed twice.
	require.Contains(t, ok(t, "dlq", "replay", "-c", f.config, all[0].At), "1 dead letter replayed\n")
	r = try(t, "", "dlq", "replay", "-c", f.config, "--reason", reason, "--json")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.err, `it came from "somewhere.else"`)
	var done dlqcmd.Replayed
	require.NoError(t, json.Unmarshal([]byte(r.out), &done))
	require.Equal(t, dlqcmd.Replayed{Replay: done.Replay, Replayed: 3, Topics: map[string]int{stream.TasksNormal: 3}, Failed: 1}, done)

	for i := range 3 {
		// Written to Kafka and not to the API: unknown until the router has read it.
		require.Eventually(t, func() bool {
			return try(t, "", "tasks", "get", fmt.Sprintf("buried-%d", i), "--server", f.URL, "--tenant", tenant, "--wait", "30s").code == cli.ExitOK
		}, 30*time.Second, 50*time.Millisecond)
	}
	// What was written has its headers back, and those of its death are gone.
	replays := 0
	require.NoError(t, f.App.Log.Scan(t.Context(), stream.TasksNormal, func(r *stream.Record) error {
		if r.Header(stream.HeaderReplay) == done.Replay {
			replays++
			require.Equal(t, "kept\x1b", r.Header("mine"))
			require.Empty(t, r.Header(records.HeaderDLQReason))
			require.True(t, strings.HasPrefix(string(r.Key), "buried-"))
		}
		return nil
	}))
	require.Equal(t, 3, replays)
	require.Eventually(t, func() bool {
		var n int
		err := f.App.Pool.QueryRow(t.Context(), `SELECT count(*) FROM audit_log WHERE action = 'record.replayed' AND detail->>'replay_id' = $1`, done.Replay).Scan(&n)
		return err == nil && n == 3
	}, 30*time.Second, 50*time.Millisecond)

	r = try(t, "", "dlq", "replay", "-c", f.config, "0@999999999")
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.err, "no dead letter at 0@999999999")
}

func TestDLQListAndShow(t *testing.T) {
	t.Parallel()
	f, reason := running(t), unique("show")
	bury(t, f, stream.TasksHigh, "k", "plain text", reason)
	bury(t, f, stream.TasksHigh, "k", "\xdf\xff\xff\xff\xff", reason)
	all := letters(t, f, reason)
	require.Len(t, all, 2)
	table := ok(t, "dlq", "list", "-c", f.config, "--reason", reason, "--topic", "tasks.high", "--stage", "router", "--since", "1h")
	require.Regexp(t, `tasks\.high/1@7 +router +`+reason+` +\S+ ago +5 B +a test buried it`, table)
	require.Len(t, lines(table), 3)
	r := try(t, "", "dlq", "list", "-c", f.config, "--reason", reason, "--limit", "1")
	require.Len(t, lines(r.out), 2)
	require.Contains(t, r.err, "1 of 2")

	require.Contains(t, ok(t, "dlq", "show", all[0].At, "-c", f.config), "\nplain text\n")
	require.Regexp(t, `header mine +kept·`, ok(t, "dlq", "show", all[0].At, "-c", f.config))
	require.Contains(t, ok(t, "dlq", "show", "dlq/"+all[1].At, "-c", f.config), "df ff ff ff ff")
	require.Equal(t, "\xdf\xff\xff\xff\xff", ok(t, "dlq", "show", all[1].At, "-c", f.config, "--raw"))
	var l dlqcmd.Letter
	require.NoError(t, json.Unmarshal([]byte(ok(t, "dlq", "show", all[0].At, "-c", f.config, "--json")), &l))
	require.Equal(t, "plain text", l.Text)
	require.Equal(t, cli.ExitFailed, try(t, "", "dlq", "show", "0@999999999", "-c", f.config).code)
}

func TestTopics(t *testing.T) {
	t.Parallel()
	f := running(t)
	prefix := unique("topics") + "."
	path := write(t, "prefixed.yaml", fmt.Sprintf("kafka:\n  brokers: [%q]\n  topic_prefix: %q\n  partitions: 1\n", f.Stack.Brokers[0], prefix))
	r := try(t, "", "topics", "list", "-c", path)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, "batchyard: topics "+prefix+"tasks.high, ")
	require.Contains(t, r.err, " are missing: run `batchyard topics create`\n")
	require.Len(t, lines(ok(t, "topics", "create", "-c", path)), len(stream.Topics))
	require.Contains(t, ok(t, "topics", "create", "-c", path), "nothing to do")
	for _, line := range lines(ok(t, "topics", "list", "-c", path, "--json")) {
		var one topic
		require.NoError(t, json.Unmarshal([]byte(line), &one))
		require.True(t, strings.HasPrefix(one.Name, prefix))
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	f := running(t)
	url := testenv.Services{PostgresURL: f.Stack.PostgresURL}.Database(t)
	path := write(t, "c.yaml", fmt.Sprintf("postgres:\n  url: %q\n", url))
	require.Contains(t, ok(t, "migrate", "down", "-c", path), "nothing to do")
	require.Contains(t, ok(t, "migrate", "status", "-c", path), " no\n")
	n := len(lines(ok(t, "migrate", "up", "-c", path)))
	require.Positive(t, n)
	require.Contains(t, ok(t, "migrate", "up", "-c", path), "nothing to do")

	r := try(t, "y\n", "migrate", "down", "-c", path)
	require.Equal(t, cli.ExitUsage, r.code, "it cannot ask without a terminal")
	require.Contains(t, ok(t, "migrate", "down", "-c", path, "--yes"), "reverted")
	applied := 0
	for _, line := range lines(ok(t, "migrate", "status", "-c", path, "--json")) {
		var m migratecmd.Migration
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		if m.AppliedAt != nil {
			applied++
		}
	}
	require.Equal(t, n-1, applied)
}

// The program itself, as a process: the first signal lets it end in order.
func TestSignalEndsAgent(t *testing.T) {
	t.Parallel()
	f := running(t)
	self, err := os.Executable()
	require.NoError(t, err)
	gone := "http://" + closedPort(t)
	cmd := exec.CommandContext(t.Context(), self, "agent", "--device", "cli-signal="+gone, "--server", f.URL, "--interval", "1s")
	cmd.Env = append(os.Environ(), runMainVar+"=1")
	var errOut syncBuffer
	cmd.Stderr = &errOut
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return strings.Contains(errOut.String(), "does not answer") }, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), errOut.String())
}

// A real exit code of a real process.
func TestExitCodeOfProcess(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, "tasks", "list", "--server", "http://"+closedPort(t))
	cmd.Env = append(os.Environ(), runMainVar+"=1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	require.Equal(t, cli.ExitUnreachable, exit.ExitCode())
	require.Empty(t, out.String())
	require.True(t, strings.HasPrefix(errOut.String(), "batchyard: "))
}
