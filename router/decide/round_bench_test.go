package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/policy"
	"github.com/batchyard/batchyard/task"
)

// BenchmarkRound measures what a task costs the decider, from its place in the window to the reason
// for its device: a round of 256 picks, divided by 256.
func BenchmarkRound(b *testing.B) {
	for _, devices := range []int{100, 5000} {
		for _, name := range policy.Names() {
			b.Run(fmt.Sprintf("%s/%d", name, devices), func(b *testing.B) { benchmarkRound(b, name, devices) })
		}
	}
}

func benchmarkRound(b *testing.B, policyName string, devices int) {
	const round = 256
	cfg := testConfig()
	cfg.MaxRoundTasks, cfg.MaxPendingTasks = round, 1<<20
	d, l := newDeciderFor(b, policyName, cfg)
	now := time.Unix(1_000_000, 0)
	f := Fleet{Rates: map[device.RateKey]device.Rate{}}
	for i := range devices {
		dv := dev(fmt.Sprintf("d%05d", i), 1+i%4, "m")
		f.Devices = append(f.Devices, dv)
		f.Rates[device.RateKey{DeviceID: dv.ID, Model: "m"}] = device.Rate{ServiceMS: float64(40 + i%7*30), Samples: 9, At: now}
	}
	d.UpdateFleet(f, now)
	items := make([]*Item, 4*round)
	for i := range items {
		items[i] = newItem(&task.Task{ID: fmt.Sprint(i), Model: "m", Tenant: fmt.Sprint("t", i%8), SessionID: fmt.Sprint(i)}, topicOf(task.Normal))
	}
	refill := func() {
		for _, it := range items {
			d.Add(it, now)
		}
	}
	refill()
	rounds := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if d.window.len() < 2*round {
			for _, it := range items {
				d.window.remove(it)
			}
			refill()
		}
		clear(l.used)
		for k, p := range d.view.pools { // three quarters of the devices are busy
			p.Used = 0
			if s := d.view.byID[k[:6]]; s != nil && s.Slots > 1 {
				p.Used = s.Slots
				l.used[k] = s.Slots
			}
		}
		l.picks, rounds, l.calls = l.picks[:0], rounds+1, 0
		b.StartTimer()
		d.runRound(now)
		b.StopTimer()
		require.Equal(b, 1, l.calls, "one call per round")
		if devices > 100 {
			require.Len(b, l.picks, round)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rounds)/round, "ns/pick")
	b.ReportMetric(0, "ns/op")
}
