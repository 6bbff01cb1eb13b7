package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/process"
	"github.com/batchyard/batchyard/test/harness"
)

// commands runs the program's own checks.
func (w *world) commands(ctx context.Context) []check.Command {
	var out []check.Command
	if _, err := w.pool.Exec(ctx, "DROP TRIGGER chaos_task ON tasks; DROP TRIGGER chaos_result ON results"); err != nil {
		w.say("dropping the triggers that watched, which audit verify would report: %v", err)
	}
	for _, one := range []struct {
		args  []string
		judge func([]byte) ([]check.Finding, error)
	}{
		// In this order: verify writes an event, which no recorder is left to record.
		{[]string{"ledger", "check"}, w.ledgerFindings},
		{[]string{"audit", "verify", "--allow-unproven", "all"}, verifyFindings}, // no witness is there, and results of killed workers have no events
	} {
		name := strings.Join(one.args[:2], " ")
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		cmd := exec.CommandContext(ctx, w.bin, append(one.args, "--json", "--config", filepath.Join(w.dir, "direct.yaml"))...) //nolint:gosec // our program
		cmd.Env = append(process.CleanEnv(), harness.SecretEnv+"="+harness.Secret)
		var said strings.Builder
		cmd.Stderr = &said
		output, _ := cmd.Output() // the exit code is checked instead
		cancel()
		c := check.Command{Args: name, Code: cmd.ProcessState.ExitCode(), Output: said.String()}
		w.say("batchyard %s: exit code %d", name, c.Code)
		_ = os.WriteFile(filepath.Join(w.dir, strings.ReplaceAll(name, " ", "-")+".txt"), append(output, said.String()...), 0o644) // best effort
		if c.Code <= 1 {
			var err error
			if c.Findings, err = one.judge(output); err != nil {
				c.Output += err.Error()
			}
			c.Judged = err == nil
		}
		out = append(out, c)
	}
	return out
}

var (
	verifyHole = regexp.MustCompile(`^records of (\S+)/(\d+) are gone, offsets (\d+) to (\d+):`)
	ledgerHole = regexp.MustCompile(`^(\S+)/(\d+)@\d+ Kafka deleted the records (\d+) to (\d+) before`)
)

func holeOf(re *regexp.Regexp, text string) *check.Hole {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	var n [3]int64
	for i, s := range m[2:] {
		n[i], _ = strconv.ParseInt(s, 10, 64) //nolint:errcheck // digits
	}
	return &check.Hole{Topic: m[1], Partition: int32(n[0]), First: n[1], Last: n[2]} //nolint:gosec // 32 bits
}

func verifyFindings(output []byte) ([]check.Finding, error) {
	var report struct {
		Findings []struct{ Reason, Topic, Detail string }
	}
	if err := json.Unmarshal(output, &report); err != nil {
		return nil, fmt.Errorf("reading the report of audit verify: %w", err)
	}
	out := []check.Finding{}
	for _, f := range report.Findings {
		out = append(out, check.Finding{Text: f.Reason + " " + f.Topic + " " + f.Detail, Hole: holeOf(verifyHole, f.Detail)})
	}
	return out, nil
}

// ledgerFindings also says what the ledger has to say because a topic was recreated: the records of tasks of
// low priority are gone.
func (w *world) ledgerFindings(output []byte) ([]check.Finding, error) {
	var report struct {
		Problems []struct {
			Kind, Tenant, At, What string
			TaskID                 string `json:"task_id"`
		}
	}
	if err := json.Unmarshal(output, &report); err != nil {
		return nil, fmt.Errorf("reading the report of ledger check: %w", err)
	}
	w.load.mu.Lock()
	defer w.load.mu.Unlock()
	out := []check.Finding{}
	for _, p := range report.Problems {
		f := check.Finding{Text: strings.Join([]string{p.Kind, p.Tenant, p.TaskID, p.At, p.What}, " "), Hole: holeOf(ledgerHole, p.At+" "+p.What)}
		if w.recreated {
			f.Expected = p.Kind == "tasks_gone" && p.At == "tasks.low" || p.Kind == "result_of_unknown_task" && w.load.lowKeys[task.Key{Tenant: p.Tenant, ID: p.TaskID}]
		}
		out = append(out, f)
	}
	return slices.Clip(out), nil
}
