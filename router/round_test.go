package router

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// known is a fleet whose service times are known: 100 ms for all.
func known(ds ...device.Device) Fleet {
	f := Fleet{Devices: ds, Rates: map[device.RateKey]device.Rate{}}
	for _, d := range ds {
		for _, m := range []string{"a", "b", "m", "n", "o"} {
			for _, merged := range []bool{false, true} {
				f.Rates[device.RateKey{Device: d.ID, Model: m, Merged: merged}] = device.Rate{ServiceMS: 100, Samples: 10, At: time.Now()}
			}
		}
	}
	return f
}

func (s *scheduler) put(t require.TestingT, tk *task.Task) *item {
	it := newItem(tk, stream.TasksTopic(tk.Priority))
	require.True(t, s.window.add(it, time.Now()))
	return it
}

func TestARoundTakesTheBestFirstAndNoMoreThanThereIsRoom(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	s.fleet(known(dev("d", 2, "*")), time.Now()) // 2 slots and 1 ahead
	low := s.put(t, &task.Task{Model: "m", Priority: task.Low})
	normal := s.put(t, &task.Task{Model: "n", Priority: task.Normal})
	high := s.put(t, &task.Task{Model: "m", Priority: task.High})
	top := s.put(t, &task.Task{Model: "o", Priority: task.High, Level: 9})
	picks, more := s.plan(time.Now())
	require.False(t, more)
	require.Len(t, picks, 3)
	for i, it := range []*item{top, high, normal} {
		require.Same(t, it, picks[i].item, i)
	}
	require.Equal(t, []int{2, 1, 0}, []int{picks[0].idle, picks[1].idle, picks[2].idle})
	require.GreaterOrEqual(t, low.index, 0)

	picks, err := s.take(picks, nil, time.Now())
	require.NoError(t, err)
	require.Len(t, picks, 3)
	require.NotEmpty(t, picks[0].lease)
	require.Equal(t, picks[0].lease, picks[2].lease, "one lease a pool and round")
	again, _ := s.plan(time.Now())
	require.Empty(t, again, "the device is full")
	require.GreaterOrEqual(t, low.index, 0, "what was not picked waits on")
}

func TestWhatGetsNoCreditGoesBack(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	s.fleet(known(dev("d", 2, "*")), time.Now())
	pool := device.Pool("d", device.ClassEach)
	_, err := s.deps.Credits.Acquire(t.Context(), "another router", []device.Want{{Pool: pool, N: 2, Limit: 3}})
	require.NoError(t, err)
	items := []*item{s.put(t, &task.Task{Model: "m"}), s.put(t, &task.Task{Model: "m"}), s.put(t, &task.Task{Model: "m"})}
	picks, _ := s.plan(time.Now())
	require.Len(t, picks, 3, "we do not know of the other router yet")
	picks, err = s.take(picks, nil, time.Now())
	require.NoError(t, err)
	require.Len(t, picks, 1)
	require.Same(t, items[0], picks[0].item)
	require.Equal(t, 3, s.view.pools[pool].Used, "now we do")
	require.Len(t, items[1].queue.ready.all, 2)
	again, _ := s.plan(time.Now())
	require.Empty(t, again)
}

func TestNothingIsLostWhenRedisGivesNoAnswer(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	s.fleet(Fleet{Devices: []device.Device{dev("d", 4, "*")}}, time.Now())
	for range 3 {
		s.put(t, &task.Task{Model: "m"})
	}
	picks, _ := s.plan(time.Now())
	require.Len(t, picks, 3)
	away := depsOn(redisClient(t, "127.0.0.1:1"), "t:", "x")
	s.deps.Credits = away.Credits
	_, err := s.take(picks, nil, time.Now())
	require.Error(t, err)
	require.Zero(t, s.view.pools[device.Pool("d", device.ClassEach)].Used)
	for _, c := range s.window.classes {
		require.Equal(t, 3, c.ready)
	}
}

func TestAClassThatNothingServesHoldsUpNobody(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	s.fleet(Fleet{Devices: []device.Device{dev("d", 2, "known")}}, time.Now())
	for range 500 {
		s.put(t, &task.Task{Model: "unknown", Priority: task.High, Level: 9})
	}
	it := s.put(t, &task.Task{Model: "known", Priority: task.Low})
	picks, _ := s.plan(time.Now())
	require.Len(t, picks, 1)
	require.Same(t, it, picks[0].item)
	for _, c := range s.window.classes {
		if c.tasks > 0 {
			require.Equal(t, c.model == "unknown", c.unable)
		}
	}
}

// Tasks that wait for a better device are looked at one by one; however many
// there are, those of another class have their turn in the same round.
func TestAClassThatWaitsForItsBestDeviceHoldsUpNobody(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	s.fleet(Fleet{
		Devices: []device.Device{dev("fast", 1, "a"), dev("slow", 1, "a"), dev("other", 1, "b")},
		Rates:   map[device.RateKey]device.Rate{{Device: "fast", Model: "a"}: {ServiceMS: 10}, {Device: "slow", Model: "a"}: {ServiceMS: 1e6}},
	}, time.Now())
	for range 2000 {
		s.put(t, &task.Task{Model: "a", Priority: task.High})
	}
	it := s.put(t, &task.Task{Model: "b", Priority: task.Low})
	picks, _ := s.plan(time.Now())
	byDevice := map[string]int{}
	found := false
	for _, p := range picks {
		byDevice[p.state.ID]++
		found = found || p.item == it
	}
	require.True(t, found, "the task of the other class was not reached")
	require.Equal(t, map[string]int{"fast": 2, "other": 1}, byDevice)
	require.Equal(t, 2001, s.window.len(), "planning takes nothing out")
	for _, c := range s.window.classes {
		if c.model == "a" {
			require.Equal(t, 1998, c.ready)
		}
	}
}

func TestWhichDevicesMayRunAClass(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	now := time.Now()
	gpu, open, slow, drains, half := dev("gpu", 4, "m"), dev("open", 4, "m"), dev("slow", 4, "m"), dev("drains", 4, "m"), dev("half", 4, "m")
	gpu.Tags, drains.Draining = []string{"gpu"}, true
	s.fleet(Fleet{
		Devices: []device.Device{gpu, open, slow, drains, half, dev("else", 4, "n")},
		Healths: map[string]device.Health{
			"open": {State: "open", OpenUntil: now.Add(time.Minute)}, "slow": {State: "closed", SlowUntil: now.Add(time.Minute)},
			"half": {State: "half-open"},
		},
	}, now)
	ids := func(tk *task.Task, at time.Time) (out []string) {
		s.view.pass(at)
		for _, st := range s.view.look(s.window.classOf(tk), at, s.rng).states {
			out = append(out, st.ID)
		}
		return out
	}
	require.Equal(t, []string{"gpu", "half"}, ids(&task.Task{Model: "m"}, now))
	require.Equal(t, []string{"gpu"}, ids(&task.Task{Model: "m", Needs: []string{"gpu"}}, now))
	require.Empty(t, ids(&task.Task{Model: "m", Needs: []string{"gpu", "fp8"}}, now))
	avoid := func(ids ...string) *task.Task { return &task.Task{Model: "m", Progress: &task.Progress{Exclude: ids}} }
	require.Equal(t, []string{"half"}, ids(avoid("gpu"), now))
	require.Equal(t, []string{"gpu", "half"}, ids(avoid("gpu", "half"), now), "better a second try there than none")
	require.Equal(t, []string{"gpu", "half", "open", "slow"}, ids(&task.Task{Model: "m"}, now.Add(2*time.Minute)))
	require.Equal(t, 1, s.view.byID["half"].each.Limit, "one request tests a device that may be well again")
}

// Whatever comes and goes, the credits in use never exceed a pool's limit, and
// every task is either in the window or was picked with a lease.
func TestRoundsAgainstRealCredits(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		s.window, s.view = newWindow(s.cfg, nil), newView(s.cfg)
		name := func(i int) string { return fmt.Sprintf("run%d-d%d", run, i) }
		ds := []device.Device{dev(name(0), 1, "a"), dev(name(1), 3, "a", "b"), dev(name(2), 2, "b")}
		s.fleet(Fleet{Devices: ds}, time.Now())
		leases := map[device.Release]int{}
		added, picked := 0, 0
		ctx := t.Context()
		check := func() {
			names := slices.Collect(maps.Keys(s.view.pools))
			used, err := s.deps.Credits.Used(ctx, names)
			require.NoError(t, err)
			for i, name := range names {
				p := s.view.pools[name]
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
					s.put(t, &task.Task{Model: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "model"), Endpoint: rapid.SampledFrom([]string{task.EndpointChat, task.EndpointEmbeddings}).Draw(t, "endpoint")})
					added++
				}
			},
			"round": func(t *rapid.T) {
				picks, _ := s.plan(time.Now())
				got, err := s.take(picks, nil, time.Now())
				require.NoError(t, err)
				for _, p := range got {
					require.NotEmpty(t, p.lease)
					leases[device.Release{Pool: p.state.pool(p.item.class.merged).name, Lease: p.lease, N: 1}]++
					picked++
				}
				check()
			},
			"release": func(t *rapid.T) {
				for r, n := range leases {
					r.N = n
					require.NoError(t, s.deps.Credits.Release(ctx, []device.Release{r}))
				}
				clear(leases)
				for _, p := range s.view.pools {
					p.Used = 0
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, added, picked+s.window.len())
				inHeaps := 0
				for _, c := range s.window.classes {
					inHeaps += c.ready
				}
				require.Equal(t, s.window.len(), inHeaps)
			},
		})
	})
}
