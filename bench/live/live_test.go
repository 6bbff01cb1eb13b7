package live

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// small returns the options of a measurement that takes seconds.
func small(t *testing.T) Options {
	return Options{
		Program: harness.Binary(t), Policies: []Policy{{"round_robin", false}, {"expected_finish", true}},
		Rounds: 1, Tasks: 160, Rate: 25, Warmup: 2 * time.Second, Duration: 3 * time.Second,
		Progress: func(note string) { t.Log(note) },
	}
}

// Run itself checks that every task has one result. How much better a policy is can
// only be measured on an idle machine; the tests of routesim check in virtual time
// which one is better.
func TestMeasuresPoliciesInTurns(t *testing.T) {
	rs, err := Run(t.Context(), small(t))
	require.NoError(t, err)
	var table bytes.Buffer
	require.NoError(t, WriteTable(&table, rs))
	t.Log(Machine() + "\n" + table.String())

	base, f := rs[0].Figures(), rs[1].Figures()
	require.Zero(t, base.Failures+f.Failures)
	require.Len(t, rs[1].Turns[0].Latencies, len(rs[0].Turns[0].Latencies), "the same arrivals")
	c := Compare(base, f)
	require.InDelta(t, f.Throughput/base.Throughput, c.Throughput, 0.02)
	require.InDelta(t, f.MeanMS/base.MeanMS, c.Mean, 0.02)
	for _, f := range []Figures{base, f} {
		require.Positive(t, f.Throughput)
		require.InDelta(t, 0.5, f.Utilisation, 0.5)
		require.Positive(t, f.Utilisation)
		require.Greater(t, f.MeanMS, f.RequestMS)
		require.LessOrEqual(t, f.P50MS, f.P99MS)
	}

	var lines bytes.Buffer
	require.NoError(t, WriteJSON(&lines, rs))
	var got []map[string]any
	for line := range strings.Lines(lines.String()) {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		got = append(got, m)
	}
	require.Len(t, got, 3)
	for _, key := range []string{"policy", "rounds", "throughput_per_s", "mean_ms", "p50_ms", "p99_ms", "utilisation", "failures"} {
		require.Contains(t, got[0], key)
		require.Contains(t, got[1], key)
	}
	require.Equal(t, "expected_finish", got[2]["ratios_of"])
	require.Equal(t, c.Throughput, got[2]["throughput"])
}

func TestCancelledRunLeavesNothing(t *testing.T) {
	o := small(t)
	dir, err := os.MkdirTemp("", "test-batchyard-*")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) // as root, Postgres runs as another user
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Duration = time.Hour
	o.Progress = func(note string) {
		if strings.Contains(note, "open arrivals") {
			cancel()
		}
	}
	_, err = Run(ctx, o) // without cancellation, this would take an hour
	require.ErrorIs(t, err, context.Canceled)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestInvalidOptions(t *testing.T) {
	for name, invalidate := range map[string]func(*Options){
		"no policy":   func(o *Options) { o.Policies = nil },
		"no tasks":    func(o *Options) { o.Tasks = 0 },
		"no rate":     func(o *Options) { o.Rate = 0 },
		"no duration": func(o *Options) { o.Duration = 0 },
	} {
		o := Options{Program: "batchyard", Policies: []Policy{{"fifo", true}}, Rounds: 1, Tasks: 20, Rate: 1, Duration: time.Second}
		invalidate(&o)
		_, err := Run(t.Context(), o)
		require.Error(t, err, name)
	}
}

func TestFigures(t *testing.T) {
	of := func(totals ...int) (ls []Latency) {
		for _, ms := range totals {
			ls = append(ls, Latency{Total: time.Duration(ms) * time.Millisecond, Waited: time.Millisecond, Request: time.Millisecond})
		}
		return ls
	}
	r := Result{Policy: Policy{"a", true}, Rate: 5, Turns: []Turn{
		{Latencies: of(10, 30), Tasks: 100, All: 10 * time.Second, Most: 5 * time.Second, Busy: 0.5, BusyAll: 0.25, Failures: 1},
		{Latencies: of(40, 40), Tasks: 100, All: 5 * time.Second, Most: 5 * time.Second, Busy: 0.7, BusyAll: 0.35, Failures: 2},
	}}
	f := r.Figures()
	require.Equal(t, Figures{
		Policy: "a", Rounds: 2, Tasks: 100, Throughput: 15, ThroughputSpread: 7.071, ThroughputMost: 19, Rate: 5,
		MeanMS: 30, MeanSpread: 14.142, P50MS: 30, P99MS: 40, WaitMS: 1, RequestMS: 1, BackMS: 28,
		Utilisation: 0.6, UtilisationAll: 0.3, Failures: 3,
	}, f)
	g := f
	g.Policy, g.Throughput, g.MeanMS = "b", 30, 15
	require.Equal(t, Ratios{Of: "b", To: "a", Throughput: 2, ThroughputMost: 1, Mean: 0.5, P50: 1, P99: 1}, Compare(f, g))
}
