package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// deviceLabel is the label of series that are about a device.
const deviceLabel = "device_id"

// deviceVec is a metric with a series for each device.
type deviceVec interface {
	prometheus.Collector
	DeletePartialMatch(prometheus.Labels) int
}

// Forget deletes the series of devices that are not known, and were not in the last call either: a device may be used before
// its first heartbeat is read. missing is what the last call returned. Otherwise the series of every device that there
// ever was would be sent at each scrape.
func (m *Metrics) Forget(known, missing map[string]bool) (stillMissing map[string]bool) {
	vecs := []deviceVec{m.Router.Assigned, m.Router.CreditsHeld, m.Workers.Attempts, m.Workers.AttemptSeconds, m.Workers.Running, m.Workers.BreakerState}
	stillMissing = map[string]bool{}
	for _, v := range vecs {
		for id := range devicesOf(v) {
			switch {
			case known[id]:
			case missing[id]:
				v.DeletePartialMatch(prometheus.Labels{deviceLabel: id})
			default:
				stillMissing[id] = true
			}
		}
	}
	return stillMissing
}

// devicesOf returns the devices that a metric has series of.
func devicesOf(v deviceVec) map[string]bool {
	series := make(chan prometheus.Metric)
	go func() {
		defer close(series)
		v.Collect(series)
	}()
	ids := map[string]bool{}
	for s := range series {
		var out dto.Metric
		if s.Write(&out) != nil {
			continue // it cannot be sent either
		}
		for _, l := range out.GetLabel() {
			if l.GetName() == deviceLabel {
				ids[l.GetValue()] = true
			}
		}
	}
	return ids
}
