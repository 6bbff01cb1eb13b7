package metrics

import (
	"reflect"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// A field that New forgets would be a nil pointer in some stage, much later.
func TestNewFillsEveryField(t *testing.T) {
	m := reflect.ValueOf(New(prometheus.NewRegistry())).Elem()
	for i := range m.NumField() {
		group := m.Field(i)
		for j := range group.NumField() {
			require.False(t, group.Field(j).IsNil(), "%s.%s is not made", m.Type().Field(i).Name, group.Type().Field(j).Name)
		}
	}
}

// Two processes' parts in one binary share one registry only when they share
// one Metrics; without a registry any number may exist.
func TestNewWithoutRegistry(t *testing.T) {
	require.NotPanics(t, func() { New(nil); New(nil) })
	reg := prometheus.NewRegistry()
	New(reg)
	require.Panics(t, func() { New(reg) })
}

func TestMetricsPassTheLinter(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := New(reg)
	m.API.Requests.WithLabelValues("/v1/tasks", "POST", "202").Inc()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		require.NotEmpty(t, f.GetHelp(), f.GetName())
		require.Regexp(t, `^batchyard_[a-z]+_[a-z_]+$`, f.GetName())
	}
}
