package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// ledger is an account of credits in memory, for deciders without a Redis.
type ledger struct {
	used   map[string]int
	asked  map[string]device.Ask
	calls  int
	fail   error
	picks  []pick
	parked int
}

func (l *ledger) acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	l.calls++
	if l.fail != nil {
		return nil, l.fail
	}
	for _, a := range asks {
		l.asked[a.Pool] = a
	}
	grants := make([]device.Grant, len(wants))
	for i, w := range wants {
		n := max(0, min(w.N, w.Limit-l.used[w.Pool]))
		l.used[w.Pool] += n
		grants[i] = device.Grant{Pool: w.Pool, N: n, Used: l.used[w.Pool], Lease: "l"}
	}
	return grants, nil
}

func (l *ledger) assigned(picks []pick, _ time.Time) { l.picks = append(l.picks, picks...) }
func (l *ledger) expired(*item, time.Time)           {}
func (l *ledger) park(*item, string, time.Time)      { l.parked++ }
func (l *ledger) arrived()                           {}

func newTestDecider(t testing.TB, cfg Config) (*decider, *ledger) {
	t.Helper()
	l := &ledger{used: map[string]int{}, asked: map[string]device.Ask{}}
	p, err := NewPolicy(cfg.Policy, cfg)
	require.NoError(t, err)
	d, err := newDecider(cfg, p, 1, l)
	require.NoError(t, err)
	return d, l
}

// BenchmarkRound is what a task costs the decider, from its place in the window to
// the reason for its device: a round of 256 picks, divided by 256.
func BenchmarkRound(b *testing.B) {
	for _, devices := range []int{100, 5000} {
		for _, name := range PolicyNames() {
			b.Run(fmt.Sprintf("%s/%d", name, devices), func(b *testing.B) { benchmarkRound(b, name, devices) })
		}
	}
}

func benchmarkRound(b *testing.B, policy string, devices int) {
	const round = 256
	cfg := testConfig()
	cfg.Policy, cfg.RoundPicks, cfg.WindowCount = policy, round, 1<<20
	d, l := newTestDecider(b, cfg)
	now := time.Unix(1_000_000, 0)
	f := Fleet{Rates: map[device.RateKey]device.Rate{}}
	for i := range devices {
		dv := dev(fmt.Sprintf("d%05d", i), 1+i%4, "m")
		f.Devices = append(f.Devices, dv)
		f.Rates[device.RateKey{Device: dv.ID, Model: "m"}] = device.Rate{ServiceMS: float64(40 + i%7*30), Samples: 9, At: now}
	}
	d.fleet(f, now)
	items := make([]*item, 4*round)
	for i := range items {
		items[i] = newItem(&task.Task{ID: fmt.Sprint(i), Model: "m", Tenant: fmt.Sprint("t", i%8), Session: fmt.Sprint(i)}, stream.TasksNormal)
	}
	refill := func() {
		for _, it := range items {
			it.gone = false
			d.add(it, now)
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
		for k, p := range d.view.pools { // three quarters of the fleet are busy
			p.Used = 0
			if s := d.view.byID[k[:6]]; s != nil && s.Slots > 1 {
				p.Used = s.Slots
				l.used[k] = s.Slots
			}
		}
		l.picks, rounds, l.calls = l.picks[:0], rounds+1, 0
		b.StartTimer()
		d.rounds(now)
		b.StopTimer()
		require.Equal(b, 1, l.calls, "one round trip")
		if devices > 100 {
			require.Len(b, l.picks, round)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rounds)/round, "ns/pick")
	b.ReportMetric(0, "ns/op")
}
