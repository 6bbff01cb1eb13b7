package decide

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/router/policy"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.StageMain(m) }

var t0 = time.Unix(1_000_000, 0)

const testPolicy = "expected_finish"

func testConfig() Config {
	return Config{
		MaxPendingTasks: 256, MaxPendingBytes: 16 << 20, MaxRoundTasks: 16, MaxPrefetch: 64, MaxDeviceQueue: 64, BatchCreditsPerSlot: 8,
		DispatchLatency: time.Millisecond, ShareNormal: 0.2, ShareLow: 0.06, LevelBoost: 2 * time.Second, ProbeInterval: time.Minute,
		MaxAsideBytes: 16 << 20, RefreshInterval: 50 * time.Millisecond,
	}
}

func policyNamed(t require.TestingT, name string) policy.Policy {
	p, err := policy.New(name, policy.Config{})
	require.NoError(t, err)
	return p
}

// topicParked is where parked tasks come from.
const topicParked = "tasks.parked"

func topicOf(p task.Priority) string {
	if p == "" {
		p = task.Normal
	}
	return "tasks." + string(p)
}

// origin is a record that a test can lose.
type origin struct {
	offset int
	lost   bool
	open   bool // what was written when it came is not acknowledged
}

func (o *origin) Lost() bool    { return o.lost }
func (o *origin) Settled() bool { return !o.open }

// offsetOf orders items by when the test made them.
func offsetOf(it *Item) int {
	o, ok := it.Origin.(*origin)
	if !ok {
		return 0
	}
	return o.offset
}

var nextOffset int

// newItem is an item as the router makes it.
func newItem(tk *task.Task, source string) *Item {
	nextOffset++
	if tk.ID == "" {
		tk.ID = fmt.Sprintf("t-%d", nextOffset)
	}
	tk.Normalize(time.Now())
	return &Item{Task: tk, Origin: &origin{offset: nextOffset}, Source: source, Size: 10, ReadyAt: tk.ReadyAt(), Parked: source == topicParked}
}

func dev(id string, slots int, models ...string) device.Device {
	return device.Device{ID: id, URL: "http://" + id, Models: models, Slots: slots, Weight: 1, Queue: -1, InFlight: -1}
}

// known is a fleet whose service times are known: 100 ms for all.
func known(ds ...device.Device) Fleet {
	f := Fleet{Devices: ds, Rates: map[device.RateKey]device.Rate{}}
	for _, d := range ds {
		for _, m := range []string{"a", "b", "m", "n", "o"} {
			for _, batched := range []bool{false, true} {
				f.Rates[device.RateKey{DeviceID: d.ID, Model: m, Batched: batched}] = device.Rate{ServiceMS: 100, Samples: 10, At: time.Now()}
			}
		}
	}
	return f
}

// oldFleet is n devices with 4 slots that have been working for an hour.
func oldFleet(n int) Fleet {
	var ds []device.Device
	for i := range n {
		d := dev(fmt.Sprint("d", i), 4, "*")
		d.JoinedAt = t0.Add(-time.Hour)
		ds = append(ds, d)
	}
	f := known(ds...)
	for k, r := range f.Rates {
		r.At = t0
		f.Rates[k] = r
	}
	f.Healths = map[string]device.Health{}
	return f
}

// ledger is the world of a decider: an account of credits in memory, and what was assigned and parked.
type ledger struct {
	used   map[string]int
	asked  map[string]device.Ask
	calls  int
	fail   error
	picks  []Pick
	parked int
}

func (l *ledger) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
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

func (l *ledger) Assign(picks []Pick, _ time.Time) { l.picks = append(l.picks, picks...) }
func (l *ledger) Expire(*Item, time.Time)          {}
func (l *ledger) Park(*Item, Parking)              { l.parked++ }
func (l *ledger) SetAside(*Item)                   {}
func (l *ledger) Recall(Owner, []Wanted)           {}
func (l *ledger) Admit()                           {}

func newTestDecider(t testing.TB, cfg Config) (*Decider, *ledger) {
	t.Helper()
	return newDeciderFor(t, testPolicy, cfg)
}

func newDeciderFor(t testing.TB, policyName string, cfg Config) (*Decider, *ledger) {
	t.Helper()
	l := &ledger{used: map[string]int{}, asked: map[string]device.Ask{}}
	return New(cfg, policyNamed(t, policyName), 1, l), l
}

// put puts a task into the window, however full it is.
func (d *Decider) put(t require.TestingT, tk *task.Task, now time.Time) *Item {
	it := newItem(tk, topicOf(tk.Priority))
	require.True(t, d.window.add(it, now))
	return it
}

// addMany adds n tasks of a model.
func addMany(d *Decider, n int, model string, p task.Priority, now time.Time) []*Item {
	items := make([]*Item, n)
	for i := range items {
		items[i] = newItem(&task.Task{Model: model, Priority: p}, topicOf(p))
		d.Add(items[i], now)
	}
	return items
}

// redisCredits is a ledger whose credits are the real ones.
type redisCredits struct {
	*ledger
	credits *store.Credits
}

func (r *redisCredits) Acquire(wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	return r.credits.AcquireFor(context.Background(), "router@test", wants, asks)
}

func creditsOn(t testing.TB, addr string) *store.Credits {
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return store.NewCredits(rdb, store.Config{Timeout: time.Hour, LeaseTTL: time.Minute}, "t:")
}

// newRedisDecider is a decider that takes its credits from Redis.
func newRedisDecider(t testing.TB) (*Decider, *store.Credits) {
	d, l := newTestDecider(t, testConfig())
	credits := creditsOn(t, miniredis.RunT(t).Addr())
	d.effects = &redisCredits{l, credits}
	return d, credits
}
