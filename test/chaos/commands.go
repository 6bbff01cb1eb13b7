package chaos

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/harness"
)

// commands runs the program's own checks.
func (w *world) commands(ctx context.Context) []check.Command {
	var out []check.Command
	for _, args := range [][]string{{"audit", "verify"}, {"ledger", "check"}} {
		var flags []string
		if args[0] == "audit" {
			flags = []string{"--allow-unproven", "all"} // no witness is there, and results of killed workers have no events
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		run := func(args ...string) (int, string) {
			cmd := exec.CommandContext(ctx, w.bin, append(args, "--config", filepath.Join(w.dir, "direct.yaml"))...) //nolint:gosec // our program
			cmd.Env = append(cleanEnv(), harness.SecretEnv+"="+harness.Secret)
			b, _ := cmd.CombinedOutput() // the exit code is checked instead
			return cmd.ProcessState.ExitCode(), string(b)
		}
		if help := exec.CommandContext(ctx, w.bin, append(slices.Clone(args), "--help")...); true { //nolint:gosec // our program
			if b, err := help.CombinedOutput(); err != nil || !strings.Contains(string(b), "batchyard "+strings.Join(args, " ")) {
				w.say("skipped: this program has no batchyard %s", strings.Join(args, " "))
				cancel()
				continue
			}
		}
		code, output := run(append(slices.Clone(args), flags...)...)
		if code == 1 && w.recreated && w.onlyGone(output) {
			code = 0
		}
		cancel()
		w.say("batchyard %s: exit code %d", strings.Join(args, " "), code)
		_ = os.WriteFile(filepath.Join(w.dir, strings.Join(args, "-")+".txt"), []byte(output), 0o644) // best effort
		out = append(out, check.Command{Args: strings.Join(args, " "), Code: code, Output: output[:min(len(output), 4000)]})
	}
	return out
}

// onlyGone reports whether the problems that `ledger check` printed are what it has to say after the
// topic was recreated, and nothing else: the records of tasks of low priority are gone.
func (w *world) onlyGone(output string) bool {
	w.load.mu.Lock()
	defer w.load.mu.Unlock()
	problems := 0
	_, list, _ := strings.Cut(output, "\nPROBLEM ")
	for _, line := range strings.Split(list, "\n")[1:] {
		words := strings.Fields(line)
		if len(words) < 4 { // the end of the table
			break
		}
		if words[0] == "tasks_gone" && words[1] == "-" && slices.Contains(words, "tasks.low") { // all of them at once
			problems++
			continue
		}
		if words[0] != "result_of_unknown_task" || !w.load.lowKeys[task.Key{Tenant: words[1], ID: words[2]}] {
			w.say("ledger check: %s", line)
			return false
		}
		problems++
	}
	return problems > 0
}
