package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// startWitness runs the command until the test ends or stop is called, and returns its URL.
func startWitness(t *testing.T, args ...string) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	out, in := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, newCLI(strings.NewReader(""), in, io.Discard), append([]string{"audit", "witness"}, args...))
		_ = in.Close()
	}()
	shown := bufio.NewScanner(out)
	for url == "" && shown.Scan() {
		url, _ = strings.CutPrefix(shown.Text(), "listening on ")
		if url == shown.Text() {
			url = ""
		}
	}
	require.NotEmpty(t, url)
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			require.Equal(t, cli.ExitOK, <-done)
		}
	}
	t.Cleanup(stop)
	return url, stop
}

// TestAWitnessAndProofs does all of it with the commands: a witness, a cosigned checkpoint, a proof, and its check elsewhere.
func TestAWitnessAndProofs(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := rig.Grown(t, pool)
	public, state := filepath.Join(g.Dir, audit.PublicKeyFile), filepath.Join(t.TempDir(), "witness")
	named := []string{"--dir", state, "--name", "witness.example.com"}
	key := strings.TrimSpace(ok(t, append([]string{"audit", "witness", "--key"}, named...)...))
	require.Equal(t, cli.ExitUsage, try(t, "", append([]string{"audit", "witness"}, named...)...).code, "no log")
	url, stop := startWitness(t, append(named, "--logs", filepath.Join(g.Dir, audit.LogKeyFile), "--listen", "127.0.0.1:0")...)

	g.Witnesses = []witness.Remote{{Key: key, URL: url}}
	g.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("more").Accepted()))
	g.Seal()
	g.Cosign()
	config := write(t, "config.yaml", fmt.Sprintf("kafka:\n  brokers: [\"127.0.0.1:1\"]\n  dial_timeout: 1s\npostgres:\n  url: %q\naudit:\n  checkpoint_dir: %q\n  witnesses:\n    - key: %q\n      url: %q\n",
		pool.Config().ConnString(), g.Dir, key, url))
	verify := func() ran { return try(t, "", "audit", "verify", "-c", config, "--no-kafka", "--log-only") }
	v := verify()
	require.Equal(t, cli.ExitOK, v.code, v.out+v.err)
	require.Contains(t, v.out, "against someone with database, checkpoint directory and Kafka: proven up to")

	proof := filepath.Join(t.TempDir(), "proof")
	require.Contains(t, ok(t, "audit", "prove", "t3-1", "-c", config, "--tenant", "acme", "--no-kafka", "-o", proof), "proven by checkpoint 4")
	shown := ok(t, "audit", "check-proof", proof, "--public-key", public, "--witness", key, "--quorum", "1")
	require.Contains(t, shown, "task.accepted")
	require.Contains(t, shown, "cosigned by witness.example.com")
	require.Contains(t, ok(t, "audit", "check-proof", proof, "--public-key", public, "--json"), `"checkpoint":4`)
	require.Equal(t, cli.ExitUsage, try(t, "", "audit", "check-proof", proof).code, "no key")
	require.Equal(t, cli.ExitUsage, try(t, "", "audit", "check-proof", proof, "--public-key", public, "--quorum", "1").code, "no witness")
	b, err := os.ReadFile(proof)
	require.NoError(t, err)
	forged := try(t, strings.Replace(string(b), `"row":`, `"row":1`, 1), "audit", "check-proof", "-", "--public-key", public)
	require.Equal(t, cli.ExitFailed, forged.code, forged.out)
	require.Contains(t, forged.err, "proves nothing")
	none := try(t, "", "audit", "prove", "nothing", "-c", config, "--tenant", "acme", "--no-kafka")
	require.NotEqual(t, cli.ExitOK, none.code)
	require.Contains(t, none.err, "the audit log has no row of it")

	// Without the witness, its signatures count where they are stored, but there may have been later ones. With it, checkpoints
	// that are gone are missed.
	stop()
	v = verify()
	require.Equal(t, cli.ExitUnproven, v.code, v.out+v.err)
	require.Contains(t, v.out, "against someone with database, checkpoint directory and Kafka: proven up to")
	require.Contains(t, v.out, "witnesses may have cosigned later checkpoints")
	require.Equal(t, cli.ExitOK, try(t, "", "audit", "verify", "-c", config, "--no-kafka", "--log-only", "--allow-unproven", "witness").code)
	require.NoError(t, os.WriteFile(g.File(), append(g.Lines()[0], '\n'), 0o600))
	require.Equal(t, cli.ExitUnproven, verify().code)
	_, port, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	startWitness(t, append(named, "--logs", filepath.Join(g.Dir, audit.LogKeyFile), "--listen", "127.0.0.1:"+port)...)
	v = verify()
	require.Equal(t, cli.ExitFailed, v.code, v.out+v.err)
	require.Contains(t, v.out, "are missing: the witness witness.example.com")
}

// TestTheCheckOfAnOutput says what it has proven, and what not.
func TestTheCheckOfAnOutput(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := rig.NewSigning(t, pool), rig.New(t, pool)
	r.Key = g.Key()
	e0, results := r.Own("events", 0), r.Own("results", 0)
	s := audittest.NewStory("t1")
	submitted := task.Event{Time: time.Now().Add(-time.Hour), Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser, ActorID: "acme", ResourceType: "job", ResourceID: "job-1", JobID: "job-1"}
	submitted.Detail = fmt.Appendf(nil, `{"sha256":"%s","tasks":1,"lines":1,"bad_lines":0,"bytes":99,"file":"n.jsonl","format":"openai"}`, strings.Repeat("a1", 32))
	end := s.Result(task.Success, "d1")
	answered := s.Event(task.AttemptSucceeded, 1, "d1")
	sum := sha256.Sum256(end.Output)
	answered.OutputSHA256 = sum[:]
	r.Record(e0.Events(t, submitted, s.Accepted(), answered, s.Event(task.TaskSucceeded, 1, "d1")), results.Result(t, end))
	g.Seal()
	config := write(t, "config.yaml", fmt.Sprintf("kafka:\n  brokers: [\"127.0.0.1:1\"]\n  dial_timeout: 1s\npostgres:\n  url: %q\naudit:\n  checkpoint_dir: %q\n", pool.Config().ConnString(), g.Dir))
	proof, public := filepath.Join(t.TempDir(), "proof"), filepath.Join(g.Dir, audit.PublicKeyFile)
	ok(t, "jobs", "prove", "job-1", "-c", config, "--tenant", "acme", "--no-kafka", "-o", proof)
	b, err := json.Marshal(jobs.OpenAILine(end))
	require.NoError(t, err)
	output := write(t, "output.jsonl", string(b)+"\n")
	shown := ok(t, "audit", "check-proof", proof, "--public-key", public, "--output", output)
	require.Contains(t, shown, "1 answer proven with all members of their lines, and 0 lines of tasks that did not succeed; the log has 1 of 1 announced tasks as ended\nnot proven: the order of lines\n")
	output = write(t, "swapped.jsonl", strings.Replace(string(b), "line-t1", "line-t2", 1)+"\n")
	forged := try(t, "", "audit", "check-proof", proof, "--public-key", public, "--output", output)
	require.Equal(t, cli.ExitFailed, forged.code)
	require.Contains(t, forged.out, "[custom_id] differ")
	require.Contains(t, forged.err, "1 problem")

	// Without the result, the log has how the task ended and the digest of its answer.
	audittest.Execute(t, pool, "DELETE FROM results")
	ok(t, "jobs", "prove", "job-1", "-c", config, "--tenant", "acme", "--no-kafka", "-o", proof)
	less := try(t, "", "audit", "check-proof", proof, "--public-key", public, "--output", output)
	require.Equal(t, cli.ExitUnproven, less.code, less.out)
	require.Contains(t, less.out, "not proven: custom_id, request_id, status_code and all else but task, success and answer in 1 line\n")
}
