package routesim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func poisson(t testing.TB, policy string, load float64, work Work, seed uint64, d time.Duration) Setup {
	t.Helper()
	f, err := NamedFleet("mixed12")
	require.NoError(t, err)
	warm := 30 * time.Second
	return Setup{
		Fleet: f, Policy: policy, Routers: 1, Hop: 2 * time.Millisecond, Seed: seed, Warmup: warm, Duration: d,
		Streams: []Stream{{Name: "all", Begin: Poisson(load*f.Capacity(), work, 0, warm+d)}},
	}
}

func TestSmoke(t *testing.T) {
	for _, p := range []string{"expected_finish", "round_robin"} {
		for _, load := range []float64{0.5, 0.85, 0.95, 1.2} {
			began := time.Now()
			s := poisson(t, p, load, Exponential, 1, 300*time.Second)
			o, err := Run(t.Context(), s)
			if err != nil {
				t.Error(err)
				continue
			}
			t.Logf("%s %.2f: mean %.1f p50 %.1f p99 %.1f util %.3f goodput %.1f bound %.1f tasks %d, %.0f tasks/s, %d events held %d", p, load, o.Mean()*1e3, o.Quantile(.5)*1e3, o.Quantile(.99)*1e3,
				o.Utilisation(), o.Goodput(), LowerBound(s.Fleet, load*s.Fleet.Capacity())*1e3, o.Tasks, float64(o.Tasks)/time.Since(began).Seconds(), o.Events, o.MostHeld)
		}
	}
}
