package benchcmd

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/router/policy"
)

// bench runs a command line of this package.
func bench(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := cli.New(strings.NewReader(""), &stdout, &stderr)
	root := c.Root()
	root.AddCommand(Command(c))
	code = c.Run(t.Context(), root, args)
	return stdout.String(), stderr.String(), code
}

func TestBenchRoute(t *testing.T) {
	t.Parallel()
	small := []string{"bench", "route", "--seeds", "2", "--tasks", "300", "--warmup", "1s"}
	run := func(args ...string) (string, string, int) {
		return bench(t, append(slices.Clone(small), args...)...)
	}

	out, errs, code := run("--load", "0.5,0.9,1.2", "--routers", "1,2", "--work", "exponential,lognormal", "--policy", "fifo,expected_finish", "--dispatch-latency", "2ms,20ms")
	require.Zero(t, code, errs)
	require.Contains(t, out, "mixed12, load 0.5, poisson arrivals, exponential work, 1 router, dispatch latency 2ms, 2 seeds; lower bound of the mean: 41.6 ms")
	require.Contains(t, out, "mixed12, load 1.2, poisson arrivals, lognormal work, 2 routers, dispatch latency 20ms, 2 seeds; lower bound of the mean: none")
	require.Equal(t, 24, strings.Count(out, "  expected_finish\n"))

	picture := filepath.Join(t.TempDir(), "routes.png")
	out, errs, code = run("--load", "0.5,1.2", "--json", "--plot", picture)
	require.Zero(t, code, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 2*len(policy.Names()), "all policies")
	for _, l := range lines {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(l), &m))
		for _, key := range []string{"policy", "arrivals", "work", "load", "routers", "dispatch_latency_ms", "seeds", "mean_ms", "p50_ms", "p99_ms", "p999_ms",
			"goodput_per_s", "utilisation", "failures", "lower_bound_mean_ms"} {
			require.Contains(t, m, key)
		}
		require.Len(t, m, 15, "these and no others")
		require.Equal(t, m["load"] == 1.2, m["lower_bound_mean_ms"] == nil)
		require.EqualValues(t, 2, m["dispatch_latency_ms"])
		require.Zero(t, m["failures"])
	}
	f, err := os.Open(picture)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	img, err := png.Decode(f)
	require.NoError(t, err)
	require.Greater(t, img.Bounds().Dx(), 800)

	again, _, _ := run("--load", "0.5,1.2", "--json", "--parallel", "1")
	require.Equal(t, out, again, "the same seeds, the same figures")

	trace := filepath.Join(t.TempDir(), "trace.csv")
	require.NoError(t, os.WriteFile(trace, []byte("TIMESTAMP,ContextTokens,GeneratedTokens\n"+
		"2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2224670,879,55\n"), 0o600))
	out, errs, code = run("--trace", trace, "--arrivals", "trace,poisson", "--work", "trace,exponential", "--load", "0.5", "--policy", "fifo", "--json")
	require.Zero(t, code, errs)
	require.Equal(t, 4, strings.Count(out, "\n"))

	out, errs, code = run("--policy", "round_robin,expected_finish", "--max-rate", "p99=1s", "--json")
	require.Zero(t, code, errs)
	require.Equal(t, 2, strings.Count(out, `"limit":"p99 ≤ 1s"`))
	require.Contains(t, out, `"rate_per_s"`)
}

func TestBenchRouteSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for says, args := range map[string][]string{
		"unknown policy":               {"--policy", "fastest"},
		"unknown fleet":                {"--fleet", "mine"},
		"unknown work":                 {"--work", "hard"},
		"unknown arrivals":             {"--arrivals", "never"},
		"unknown binding":              {"--binding", "soon"},
		"not a number":                 {"--load", "much"},
		"out of range":                 {"--load", "0"},
		"routers are out of range":     {"--routers", "0"},
		"a dispatch latency of":        {"--dispatch-latency", "-1ms"},
		"--seeds":                      {"--seeds", "0"},
		"name its file with --trace":   {"--arrivals", "trace"},
		"reading the trace":            {"--trace", "/does/not/exist"},
		"invalid limit":                {"--max-rate", "fast"},
		"--duration and --warmup":      {"--duration", "0s"},
		"bench route takes only flags": {"extra"},
		"--plot: ":                     {"--plot", "/does/not/exist/x.png"},
		"cannot be combined":           {"--plot", "x.png", "--max-rate", "p99=1s"},
	} {
		out, errs, code := bench(t, append([]string{"bench", "route"}, args...)...)
		require.Equal(t, cli.ExitUsage, code, says)
		require.Contains(t, errs, says)
		require.Empty(t, out)
	}
}
