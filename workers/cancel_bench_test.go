package workers

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
)

// BenchmarkCancelling cancels 1,000 tasks in flight at once, and reports how long it takes until 99 % of the
// connections to their devices are closed, as the devices see it. It should be less than a second.
func BenchmarkCancelling(b *testing.B) {
	const n = 1000
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		y := newYard(b, slowDevices(n)...)
		_, stop := y.workers(testConfig())
		keys := y.fill(n)
		b.StartTimer()
		began := time.Now()
		require.NoError(b, y.deps.Cancels.Cancel(b.Context(), keys...))
		y.eventually("connections are closed", func() bool { return y.total(func(s fleet.Stats) int { return s.InFlight }) <= n/100 })
		took = append(took, time.Since(began))
		b.StopTimer()
		y.committed()
		stop()
		b.StartTimer()
	}
	b.ReportMetric(slices.Max(took).Seconds(), "s-until-99%")
}
