package benchcmd

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
)

func TestBenchRouteLiveSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--plot x.png":                 "--plot is for the simulation",
		"--dispatch-latency 2ms":       "--dispatch-latency is for the simulation",
		"--policy best":                `--policy: cannot measure "best"`,
		"--policy all":                 `--policy: cannot measure "all"`,
		"--rounds 0":                   "--rounds: 0 is out of range",
		"--rate -1":                    "--rate: -1 is out of range",
		"--rate NaN":                   "--rate: NaN is out of range",
		"--tasks 3":                    "--tasks: 3 is out of range",
		"--duration 1ms":               "--warmup and --duration",
		"--config nowhere/config.yaml": "nowhere/config.yaml",
	} {
		out, errs, code := bench(t, append([]string{"bench", "route", "--live"}, strings.Fields(args)...)...)
		require.Equal(t, cli.ExitUsage, code, args)
		require.Contains(t, errs, want, args)
		require.Empty(t, out, args)
	}
}
