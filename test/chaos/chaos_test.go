package chaos

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/hooks"
	"github.com/batchyard/batchyard/test/harness"
)

var (
	seconds     = flag.Int("chaos.seconds", 0, "duration of the chaos; 0 skips TestChaos")
	soakSeconds = flag.Int("soak.seconds", 0, "duration of the soak; 0 skips TestSoak")
	seed        = flag.Uint64("chaos.seed", 1, "seed of the plan")
	rate        = flag.Int("chaos.rate", 80, "tasks per second")
	logs        = flag.String("chaos.dir", "", "directory for logs, plan and summary (default: dist/chaos/seed-SEED or dist/soak/seed-SEED in the repository)")
	many        = flag.Bool("chaos.cluster", false, "run Kafka, Redis and Postgres as clusters, and lose parts of them")
	only        = flag.Bool("chaos.plan", false, "print the plan and exit")
)

func TestMain(m *testing.M) { harness.Main(m) }

// budget is the maximum time for everything but the chaos itself. On two idle cores
// it takes about 90 s; clusters take a minute longer to start.
const budget = 15 * time.Minute

func TestChaos(t *testing.T) {
	if *seconds == 0 {
		t.Skip("to run it: make chaos CHAOS_SECONDS=60 CHAOS_SEED=7")
	}
	run(t, newChaos(*seed, time.Duration(*seconds)*time.Second, *rate))
}

func TestSoak(t *testing.T) {
	if *soakSeconds == 0 {
		t.Skip("to run it: make soak SOAK_SEED=1")
	}
	run(t, newSoak(*seed, time.Duration(*soakSeconds)*time.Second, *rate/2))
}

func run(t *testing.T, p *profile) {
	t.Helper()
	fmt.Printf("plan of %s, seed %d for %.0f s:\n", p.name, p.seed, p.length.Seconds())
	for _, f := range p.plan {
		fmt.Println(f)
	}
	if *only {
		return
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, p.length+budget)
	defer cancel()
	dir := runDir(t, p)
	began := time.Now()
	w, err := build(ctx, t, dir, p)
	if w != nil {
		defer w.close()
	}
	require.NoError(t, err)
	defer endIfHung(w, p.length+budget)()
	receiver, err := hooks.New(p.seed, silentHosts)
	require.NoError(t, err)
	defer receiver.Close()
	l, err := newLoad(w, p.seed, p.rate, receiver.URL)
	require.NoError(t, err)
	w.load = l
	defer l.close()

	before := w.warmUp(ctx, t, l)
	h := &check.History{ParkEvery: p.retention / 4} // half of half of the retention: no clock of this test is that exact
	w.say("%s for %s", p.name, p.length)
	w.begin = time.Now()
	stopLooking := w.lookout(ctx)
	endStanding := l.stand(receiver)
	over, cancelLoad := context.WithDeadline(ctx, w.begin.Add(p.length))
	defer cancelLoad()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		l.run(over)
	}()
	w.runPlan(ctx, p.plan, p.length)
	<-loaded
	receiver.Heal()
	l.into(h)
	healed := time.Now()
	w.say("everything is healed; draining")
	err = w.drain(ctx, accepted(h))
	endStanding() // what stands has held up nothing
	if err == nil {
		err = w.drain(ctx, accepted(h))
	}
	if err != nil {
		h.Undrained = err.Error()
		w.say("not drained: %v", err)
	}
	drained := time.Since(healed)
	var longest map[string]time.Duration
	h.Stalls, longest = stopLooking()
	w.say("drained after %.1f s; checking", drained.Seconds())
	found := w.judge(ctx, t, h, l, receiver, before)
	s := summarize(h, p.plan, l, w)
	s.Name, s.Seed, s.Seconds, s.Drain, s.Took = p.name, p.seed, p.length.Seconds(), drained.Seconds(), time.Since(began).Seconds()
	s.still(longest)
	s.Violations, s.Passed = found, len(found) == 0
	require.NoError(t, s.write())
	fmt.Print(s)
	if len(found) > 0 {
		text := w.explain(found)
		_ = os.WriteFile(filepath.Join(dir, "violations.txt"), []byte(text), 0o644) // best effort: it is also printed
		t.Fatalf("seed %d: %d violations; logs and details are in %s:\n%s", p.seed, len(found), dir, text)
	}
}

// endIfHung kills everything if the test hangs, and prints its goroutines.
func endIfHung(w *world, limit time.Duration) (stop func()) {
	timer := time.AfterFunc(limit+30*time.Second, func() {
		fmt.Println("the test hangs; its goroutines:")
		_ = pprof.Lookup("goroutine").WriteTo(os.Stdout, 1) // best effort
		w.killAll()
		os.Exit(2)
	})
	return func() { timer.Stop() }
}

// runDir returns a directory that contains just the plan.
func runDir(t *testing.T, p *profile) string {
	t.Helper()
	dir := *logs
	if dir == "" {
		dir = filepath.Join("..", "..", "dist", p.name, fmt.Sprintf("seed-%d", p.seed))
	}
	dir, err := filepath.Abs(dir)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	b, err := json.MarshalIndent(p.plan, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plan.json"), b, 0o644))
	return dir
}

// warmUp sends tasks through all processes, so that they open the connections they
// keep, and returns their figures once they are idle again.
func (w *world) warmUp(ctx context.Context, t *testing.T, l *load) map[string][2]int {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l.run(short)
	h := &check.History{}
	l.into(h)
	ctx, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	require.NoError(t, w.drain(ctx, accepted(h)), "before the chaos")
	before, err := w.idle(ctx, nil)
	require.NoError(t, err)
	return before
}

func accepted(h *check.History) (keys []task.Key) {
	seen := map[task.Key]bool{}
	for _, s := range h.Submits {
		if s.Outcome == check.Accepted && !seen[s.Key] {
			seen[s.Key] = true
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// judge collects the history, stops the processes, and checks it.
func (w *world) judge(ctx context.Context, t *testing.T, h *check.History, l *load, receiver *hooks.Receiver, before map[string][2]int) []check.Violation {
	t.Helper()
	// Connections kept open by clients and the receiver would look like leaks.
	l.http.CloseIdleConnections()
	receiver.Disconnect()
	after, err := w.idle(ctx, before)
	require.NoError(t, err)
	h.Left = append(h.Left, w.credits(ctx)...)
	h.Left = append(h.Left, w.sessions(ctx, 6*2*len(Stages))...)
	w.end(ctx, h, before, after)
	require.NoError(t, w.collect(ctx, h))
	h.Commands = w.commands(ctx)
	h.Deliveries = receiver.Deliveries()
	return check.Check(h)
}
