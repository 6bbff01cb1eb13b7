package routesim

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkRun measures how many tasks are simulated per second.
func BenchmarkRun(b *testing.B) {
	for _, c := range []struct {
		policy string
		load   float64
	}{{"expected_finish", 0.5}, {"expected_finish", 0.95}, {"round_robin", 0.85}} {
		b.Run(fmt.Sprintf("%s/%g", c.policy, c.load), func(b *testing.B) {
			tasks := int64(0)
			for b.Loop() {
				o, err := Run(b.Context(), poisson(b, c.policy, c.load, Exponential, 1, 100*time.Second))
				require.NoError(b, err)
				tasks += o.Routed
			}
			b.ReportMetric(float64(tasks)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
