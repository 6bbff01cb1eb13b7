package decide

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

func TestARoundPicksInOrderAndNoMoreThanThereAreCredits(t *testing.T) {
	d, _ := newRedisDecider(t)
	d.UpdateFleet(known(dev("d", 2, "*")), time.Now()) // 2 slots and 1 credit beyond them
	low := d.put(t, &task.Task{Model: "m", Priority: task.Low}, time.Now())
	normal := d.put(t, &task.Task{Model: "n", Priority: task.Normal}, time.Now())
	high := d.put(t, &task.Task{Model: "m", Priority: task.High}, time.Now())
	top := d.put(t, &task.Task{Model: "o", Priority: task.High, Level: 9}, time.Now())
	picks, more := d.plan(time.Now())
	require.False(t, more)
	require.Len(t, picks, 3)
	for i, it := range []*Item{top, high, normal} {
		require.Same(t, it, picks[i].Item, i)
	}
	require.Equal(t, []int{2, 1, 0}, []int{picks[0].IdleSlots, picks[1].IdleSlots, picks[2].IdleSlots})
	require.GreaterOrEqual(t, low.index, 0)

	picks, err := d.take(picks, nil, time.Now())
	require.NoError(t, err)
	require.Len(t, picks, 3)
	require.NotEmpty(t, picks[0].Lease)
	require.Equal(t, picks[0].Lease, picks[2].Lease, "a pool gets one lease per round")
	again, _ := d.plan(time.Now())
	require.Empty(t, again, "the device is full")
	require.GreaterOrEqual(t, low.index, 0, "the task that was not picked must stay ready")
}

func TestPicksWithoutACreditReturnToTheWindow(t *testing.T) {
	d, credits := newRedisDecider(t)
	d.UpdateFleet(known(dev("d", 2, "*")), time.Now())
	pool := device.Pool("d", device.ClassEach)
	_, err := credits.Acquire(t.Context(), "another router", []device.Want{{Pool: pool, N: 2, Limit: 3}})
	require.NoError(t, err)
	items := []*Item{d.put(t, &task.Task{Model: "m"}, time.Now()), d.put(t, &task.Task{Model: "m"}, time.Now()), d.put(t, &task.Task{Model: "m"}, time.Now())}
	picks, _ := d.plan(time.Now())
	require.Len(t, picks, 3, "the other router's credits are not known yet")
	picks, err = d.take(picks, nil, time.Now())
	require.NoError(t, err)
	require.Len(t, picks, 1)
	require.Same(t, items[0], picks[0].Item)
	require.Equal(t, 3, d.view.pools[pool].Used, "the grant said so")
	require.Len(t, items[1].queue.ready.all, 2)
	again, _ := d.plan(time.Now())
	require.Empty(t, again)
}

func TestNothingIsLostWhenRedisIsAway(t *testing.T) {
	d, l := newTestDecider(t, testConfig())
	d.effects = &redisCredits{l, creditsOn(t, "127.0.0.1:1")} // where no Redis is
	d.UpdateFleet(Fleet{Devices: []device.Device{dev("d", 4, "*")}}, time.Now())
	for range 3 {
		d.put(t, &task.Task{Model: "m"}, time.Now())
	}
	picks, _ := d.plan(time.Now())
	require.Len(t, picks, 3)
	_, err := d.take(picks, nil, time.Now())
	require.Error(t, err)
	require.Zero(t, d.view.pools[device.Pool("d", device.ClassEach)].Used)
	for _, dm := range d.window.demands {
		require.Equal(t, 3, dm.ready)
	}
}

func TestADemandWithoutADeviceDelaysNoOther(t *testing.T) {
	d, _ := newRedisDecider(t)
	d.UpdateFleet(Fleet{Devices: []device.Device{dev("d", 2, "known")}}, time.Now())
	for range 500 {
		d.put(t, &task.Task{Model: "unknown", Priority: task.High, Level: 9}, time.Now())
	}
	it := d.put(t, &task.Task{Model: "known", Priority: task.Low}, time.Now())
	picks, _ := d.plan(time.Now())
	require.Len(t, picks, 1)
	require.Same(t, it, picks[0].Item)
	for _, dm := range d.window.demands {
		if dm.tasks > 0 {
			require.Equal(t, dm.Model == "unknown", dm.unservable)
		}
	}
}

// Tasks that wait for a better device are looked at one by one. However many there are, tasks of another
// demand get their turn in the same round.
func TestADemandThatWaitsForItsBestDeviceDelaysNoOther(t *testing.T) {
	d, _ := newRedisDecider(t)
	d.UpdateFleet(Fleet{
		Devices: []device.Device{dev("fast", 1, "a"), dev("slow", 1, "a"), dev("other", 1, "b")},
		Rates:   map[device.RateKey]device.Rate{{Device: "fast", Model: "a"}: {ServiceMS: 10}, {Device: "slow", Model: "a"}: {ServiceMS: 1e6}},
	}, time.Now())
	for range 2000 {
		d.put(t, &task.Task{Model: "a", Priority: task.High}, time.Now())
	}
	it := d.put(t, &task.Task{Model: "b", Priority: task.Low}, time.Now())
	picks, _ := d.plan(time.Now())
	byDevice := map[string]int{}
	found := false
	for _, p := range picks {
		byDevice[p.Device.ID]++
		found = found || p.Item == it
	}
	require.True(t, found, "the task of the other demand was not reached")
	require.Equal(t, map[string]int{"fast": 2, "other": 1}, byDevice)
	require.Equal(t, 2001, d.window.len(), "plan must take nothing out of the window")
	for _, dm := range d.window.demands {
		if dm.Model == "a" {
			require.Equal(t, 1998, dm.ready)
		}
	}
}

func TestCandidatesOfADemand(t *testing.T) {
	d, _ := newRedisDecider(t)
	now := time.Now()
	gpu, open, slow, drains, half := dev("gpu", 4, "m"), dev("open", 4, "m"), dev("slow", 4, "m"), dev("drains", 4, "m"), dev("half", 4, "m")
	gpu.Tags, drains.Draining = []string{"gpu"}, true
	d.UpdateFleet(Fleet{
		Devices: []device.Device{gpu, open, slow, drains, half, dev("else", 4, "n")},
		Healths: map[string]device.Health{
			"open": {State: "open", OpenUntil: now.Add(time.Minute)}, "slow": {State: "closed", SlowUntil: now.Add(time.Minute)},
			"half": {State: "half-open"},
		},
	}, now)
	ids := func(tk *task.Task, at time.Time) (out []string) {
		d.view.pass(at)
		for _, st := range d.view.snapshotOf(d.window.demandOf(tk), at, d.rng).devices {
			out = append(out, st.ID)
		}
		return out
	}
	require.Equal(t, []string{"gpu", "half"}, ids(&task.Task{Model: "m"}, now))
	require.Equal(t, []string{"gpu"}, ids(&task.Task{Model: "m", Needs: []string{"gpu"}}, now))
	require.Empty(t, ids(&task.Task{Model: "m", Needs: []string{"gpu", "fp8"}}, now))
	excluding := func(ids ...string) *task.Task { return &task.Task{Model: "m", Progress: &task.Progress{Exclude: ids}} }
	require.Equal(t, []string{"half"}, ids(excluding("gpu"), now))
	require.Equal(t, []string{"gpu", "half"}, ids(excluding("gpu", "half"), now), "a second try on the same device is better than none")
	require.Equal(t, []string{"gpu", "half", "open", "slow"}, ids(&task.Task{Model: "m"}, now.Add(2*time.Minute)))
	require.Equal(t, 1, d.view.byID["half"].single.Limit, "one request at a time tests a half-open device")
}

// Whatever tasks arrive and finish, the credits in use never exceed a pool's limit, and every task is
// either in the window or was picked with a lease.
func TestRoundsAgainstRealCredits(t *testing.T) {
	d, credits := newRedisDecider(t)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		d.window, d.view = newWindow(d.cfg), newView(d.cfg)
		name := func(i int) string { return fmt.Sprintf("run%d-d%d", run, i) }
		ds := []device.Device{dev(name(0), 1, "a"), dev(name(1), 3, "a", "b"), dev(name(2), 2, "b")}
		d.UpdateFleet(Fleet{Devices: ds}, time.Now())
		leases := map[device.Release]int{}
		added, picked := 0, 0
		ctx := t.Context()
		check := func() {
			names := slices.Collect(maps.Keys(d.view.pools))
			used, err := credits.Used(ctx, names)
			require.NoError(t, err)
			for i, name := range names {
				p := d.view.pools[name]
				require.LessOrEqual(t, used[i], p.Limit)
				n := 0
				for r, k := range leases {
					if r.Pool == p.name {
						n += k
					}
				}
				require.Equal(t, n, used[i])
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 10).Draw(t, "n") {
					d.put(t, &task.Task{Model: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "model"), Endpoint: rapid.SampledFrom([]string{task.EndpointChat, task.EndpointEmbeddings}).Draw(t, "endpoint")}, time.Now())
					added++
				}
			},
			"round": func(t *rapid.T) {
				picks, _ := d.plan(time.Now())
				got, err := d.take(picks, nil, time.Now())
				require.NoError(t, err)
				for _, p := range got {
					require.NotEmpty(t, p.Lease)
					leases[device.Release{Pool: p.Pool, Lease: p.Lease, N: 1}]++
					picked++
				}
				check()
			},
			"release": func(t *rapid.T) {
				for r, n := range leases {
					r.N = n
					require.NoError(t, credits.Release(ctx, []device.Release{r}))
				}
				clear(leases)
				for _, p := range d.view.pools {
					p.Used = 0
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, added, picked+d.window.len())
				inHeaps := 0
				for _, dm := range d.window.demands {
					inHeaps += dm.ready
				}
				require.Equal(t, d.window.len(), inHeaps)
			},
		})
	})
}

func TestPicksSayWhyTheDeviceWasChosen(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	gone, other := dev("gone", 1, "m"), dev("other", 1, "n")
	gone.Draining = true
	d.UpdateFleet(Fleet{
		Devices: []device.Device{dev("d", 2, "*"), dev("slow", 1, "*"), gone, other},
		Rates:   map[device.RateKey]device.Rate{{Device: "d", Model: "m"}: {ServiceMS: 40}, {Device: "slow", Model: "m"}: {ServiceMS: 400}},
	}, time.Now())
	d.put(t, &task.Task{Model: "m"}, time.Now())
	picks, _ := d.plan(time.Now())
	type candidate struct {
		Device             string `json:"device_id"`
		Score              float64
		Unit               string
		Used, Slots, Limit int
		ServiceMS          float64 `json:"service_ms"`
	}
	var why struct {
		Policy, Why string
		Of          int
		Candidates  []candidate
		Out         map[string]int
	}
	require.NoError(t, json.Unmarshal(picks[0].Why, &why), "%s", picks[0].Why)
	require.Equal(t, "expected_finish", why.Policy)
	require.Equal(t, "it can start at once", why.Why)
	require.Equal(t, 2, why.Of)
	require.Equal(t, []candidate{{Device: "d", Score: 41, Unit: "ms", Slots: 2, Limit: 3, ServiceMS: 40}}, why.Candidates)
	require.Equal(t, map[string]int{"model": 1, "draining": 1}, why.Out)
	require.Less(t, len(picks[0].Why), task.MaxDetail)
}
