package metrics_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
)

func TestSeriesOfForgottenDevicesAreDeleted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	for _, id := range []string{"stays", "gone"} {
		m.Router.Assigned.WithLabelValues(id).Inc()
		m.Router.CreditsHeld.WithLabelValues(id).Set(1)
		m.Workers.Attempts.WithLabelValues(id, "ok").Inc()
		m.Workers.Attempts.WithLabelValues(id, "timeout").Inc()
		m.Workers.AttemptSeconds.WithLabelValues(id).Observe(1)
		m.Workers.Running.WithLabelValues(id).Set(0)
		m.Workers.BreakerState.WithLabelValues(id).Set(2)
	}
	series := func() map[string]int {
		families, err := reg.Gather()
		require.NoError(t, err)
		n := map[string]int{}
		for _, f := range families {
			for _, s := range f.GetMetric() {
				for _, l := range s.GetLabel() {
					if l.GetName() == "device_id" {
						n[l.GetValue()]++
					}
				}
			}
		}
		return n
	}
	known := map[string]bool{"stays": true}
	missing := m.Forget(map[string]bool{"stays": true, "gone": true}, nil)
	require.Empty(t, missing)
	missing = m.Forget(known, missing)
	require.Equal(t, map[string]bool{"gone": true}, missing)
	require.Equal(t, map[string]int{"stays": 7, "gone": 7}, series(), "it may only not be known yet")
	require.Empty(t, m.Forget(known, missing))
	require.Equal(t, map[string]int{"stays": 7}, series())
}
