package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

func TestDrain(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		r, c := NewRegistry(rdb, Config{}, prefix), NewControl(rdb, Config{}, prefix)
		changed := make(chan struct{}, 100)
		background(t, func(ctx context.Context) error { return r.Watch(ctx, func() { changed <- struct{}{} }) })
		wait(t, changed, "the first subscription")
		_, err := c.Drain(t.Context(), "a")
		require.ErrorIs(t, err, ErrNoDevice)
		_, err = c.Drain(t.Context(), "a b")
		var fe *task.FieldError
		require.ErrorAs(t, err, &fe)

		_, err = r.Beat(t.Context(), gpu("a"))
		require.NoError(t, err)
		wait(t, changed, "joining")
		was, err := c.Drain(t.Context(), "a")
		require.NoError(t, err)
		require.True(t, was)
		wait(t, changed, "routers are notified at once")
		was, err = c.Drain(t.Context(), "a")
		require.NoError(t, err)
		require.False(t, was, "it was drained already")
		d := gpu("a")
		d.Draining = false // its heartbeats do not undrain it
		_, err = r.Beat(t.Context(), d)
		require.NoError(t, err)
		ds, err := r.List(t.Context())
		require.NoError(t, err)
		require.True(t, ds[0].Draining && ds[0].Drained)
		require.WithinDuration(t, time.Now(), ds[0].DrainedAt, time.Minute)

		// It leaves, and is still drained when it comes back.
		require.NoError(t, r.Leave(t.Context(), "a"))
		s, err := c.Load(t.Context())
		require.NoError(t, err)
		require.Contains(t, s.Drained, "a")
		_, err = r.Beat(t.Context(), gpu("a"))
		require.NoError(t, err)
		ds, err = r.List(t.Context())
		require.NoError(t, err)
		require.True(t, ds[0].Draining)

		was, err = c.Undrain(t.Context(), "a")
		require.NoError(t, err)
		require.True(t, was)
		ds, err = r.List(t.Context())
		require.NoError(t, err)
		require.False(t, ds[0].Draining || ds[0].Drained)
		d.Draining = true
		_, err = r.Beat(t.Context(), d)
		require.NoError(t, err)
		ds, err = r.List(t.Context())
		require.NoError(t, err)
		require.True(t, ds[0].Draining, "the device may still drain itself")
		require.False(t, ds[0].Drained)
	})
}

func TestDrainsAreBounded(t *testing.T) {
	m := miniredis.RunT(t)
	cfg := Config{MaxDevices: 2}
	r, c := NewRegistry(client(t, m.Addr()), cfg, ""), NewControl(client(t, m.Addr()), cfg, "")
	for i := range 3 {
		id := fmt.Sprint("d", i)
		_, err := r.Beat(t.Context(), gpu(id))
		require.NoError(t, err)
		_, err = c.Drain(t.Context(), id)
		var fe *task.FieldError
		if i == 2 {
			require.ErrorAs(t, err, &fe)
			require.NotEmpty(t, fe.Remedy)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, r.Leave(t.Context(), id)) // room for the next
	}
}

func TestPolicySetting(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		r, c := NewRegistry(rdb, Config{}, prefix), NewControl(rdb, Config{}, prefix)
		changed := make(chan struct{}, 100)
		background(t, func(ctx context.Context) error { return r.Watch(ctx, func() { changed <- struct{}{} }) })
		wait(t, changed, "the first subscription")
		s, err := c.Load(t.Context())
		require.NoError(t, err)
		require.Nil(t, s.Policy, "the file's")

		one := &device.PolicySetting{Name: "load_formula", Weights: map[string]float64{"cpu": .6, "mem": .4}, By: "ops", At: time.Now().UTC().Truncate(time.Millisecond)}
		before, err := c.SetPolicy(t.Context(), one)
		require.NoError(t, err)
		require.Nil(t, before)
		wait(t, changed, "routers are notified at once")
		s, err = c.Load(t.Context())
		require.NoError(t, err)
		require.True(t, s.Policy.Same(one))
		require.Equal(t, "ops", s.Policy.By)
		require.True(t, one.At.Equal(s.Policy.At))
		require.EqualValues(t, 1, s.Policy.Version)

		before, err = c.SetPolicy(t.Context(), &device.PolicySetting{Name: "power_of_two", Binding: "late"})
		require.NoError(t, err)
		require.Equal(t, "load_formula", before.Name)
		before, err = c.SetPolicy(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, "power_of_two", before.Name)
		s, err = c.Load(t.Context())
		require.NoError(t, err)
		require.Nil(t, s.Policy)
		_, err = c.SetPolicy(t.Context(), one)
		require.NoError(t, err)
		s, err = c.Load(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 4, s.Policy.Version, "the version keeps counting")

		// Another program may write there too.
		require.NoError(t, rdb.HSet(t.Context(), c.policy, "setting", `{"policy":"whatever"}`).Err())
		s, err = c.Load(t.Context())
		require.NoError(t, err)
		require.Nil(t, s.Policy)
	})
}

func TestInvalidPolicySettings(t *testing.T) {
	for field, s := range map[string]device.PolicySetting{
		"policy":      {},
		"policy ":     {Name: "best"},
		"binding":     {Name: "fifo", Binding: "never"},
		"weights":     {Name: "fifo", Weights: map[string]float64{"cpu": 1}},
		"weights ":    {Name: "load_formula", Weights: map[string]float64{"cpu": 0}},
		"weights.gpu": {Name: "load_formula", Weights: map[string]float64{"gpu": 1}},
		"weights.cpu": {Name: "load_formula", Weights: map[string]float64{"cpu": -1}},
		"preset":      {Name: "load_formula", Preset: "fast"},
		"preset ":     {Name: "load_formula", Preset: "edge", Weights: map[string]float64{"cpu": 1}},
		"preset  ":    {Name: "hash", Preset: "edge"},
	} {
		var fe *task.FieldError
		require.ErrorAs(t, s.Validate(), &fe, field)
		require.Equal(t, trim(field), fe.Field)
		require.NotEmpty(t, fe.Problem)
		require.NotEmpty(t, fe.Remedy)
		_, err := NewControl(nil, Config{}, "").SetPolicy(t.Context(), &s)
		require.ErrorAs(t, err, &fe, "it does not reach Redis")
	}
	for _, name := range device.PolicyNames() {
		require.NoError(t, (&device.PolicySetting{Name: name}).Validate())
	}
	require.True(t, slices.IsSorted(device.PolicyNames()))
	require.Contains(t, device.PolicyNames(), device.DefaultPolicy)
	for name, w := range device.LoadPresets {
		require.NoError(t, (&device.PolicySetting{Name: "load_formula", Weights: w}).Validate(), name)
	}
}

func trim(s string) string {
	for len(s) > 0 && s[len(s)-1] == ' ' {
		s = s[:len(s)-1]
	}
	return s
}

func TestPolicySettingFromTheFile(t *testing.T) {
	s, err := device.NewPolicySetting("load_formula", "auto", map[string]string{"cpu": "0.6", "mem": "0.4"})
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"cpu": .6, "mem": .4}, s.Weights)
	require.True(t, maps.Equal(map[string]string{"cpu": "0.6", "mem": "0.4"}, s.Texts()))
	s, err = device.NewPolicySetting("load_formula", "", map[string]string{"preset": "edge"})
	require.NoError(t, err)
	require.Equal(t, "edge", s.Preset)
	require.Equal(t, map[string]string{"preset": "edge"}, s.Texts())
	s, err = device.NewPolicySetting("fifo", "", map[string]string{"cpu": "0.6"})
	require.NoError(t, err)
	require.True(t, s.Same(&device.PolicySetting{Name: "fifo", Binding: "auto"}), "the file may keep weights for another policy")
	for _, w := range []map[string]string{{"cpu": "much"}, {"gpu": "1"}, {"preset": "x"}} {
		_, err = device.NewPolicySetting("load_formula", "", w)
		require.Error(t, err)
		_, err = device.NewPolicySetting("fifo", "", w)
		require.Error(t, err, "mistakes are found even if another policy is chosen")
	}
}

func TestPriorityOverrides(t *testing.T) {
	onRedis(t, func(t *testing.T, rdb redis.UniversalClient, prefix string) {
		c := NewOverrides(rdb, Config{}, prefix)
		got, gaps := make(chan []task.Key, 10), make(chan struct{}, 10)
		background(t, func(ctx context.Context) error {
			return c.WatchPriorities(ctx, func(k []task.Key) { got <- k }, func() { gaps <- struct{}{} })
		})
		wait(t, gaps, "the first subscription")
		a, b := task.Key{Tenant: "t", ID: "a"}, task.Key{Tenant: "t", ID: "b"}
		require.NoError(t, c.Reprioritize(t.Context(), device.PriorityChange{Key: a, Level: -1}), "nothing to change")
		require.NoError(t, c.Reprioritize(t.Context(), device.PriorityChange{Key: a, Priority: task.High, Level: -1}))
		require.Equal(t, []task.Key{a}, wait(t, got, "the change"))
		require.NoError(t, c.Reprioritize(t.Context(), device.PriorityChange{Key: a, Level: 7}))
		require.Equal(t, []task.Key{a}, wait(t, got, "the second change"))
		require.NoError(t, c.Cancel(t.Context(), b))

		marks, err := c.Get(t.Context(), a, b, task.Key{Tenant: "u", ID: "a"})
		require.NoError(t, err)
		require.Equal(t, []device.Override{{PriorityChange: device.PriorityChange{Key: a, Priority: task.High, Level: 7}},
			{Cancelled: true, PriorityChange: device.PriorityChange{Key: b, Level: -1}}, {PriorityChange: device.PriorityChange{Key: task.Key{Tenant: "u", ID: "a"}, Level: -1}}}, marks)
		cancelled, err := c.Cancelled(t.Context(), a, b)
		require.NoError(t, err)
		require.Equal(t, []bool{false, true}, cancelled, "a change of priority is not a cancel")

		one := &task.Task{Priority: task.Low, Level: 1}
		require.True(t, marks[0].Apply(one))
		require.Equal(t, task.High, one.Priority)
		require.Equal(t, 7, one.Level)
		require.False(t, marks[0].Apply(one), "nothing to change")
		require.True(t, marks[2].Zero())

		// Another program may write there too.
		require.NoError(t, rdb.HSet(t.Context(), c.key(b), "p", "urgent", "l", "99").Err())
		marks, err = c.Get(t.Context(), b)
		require.NoError(t, err)
		require.True(t, marks[0].Zero())
	})
}

func FuzzForeignWrites(f *testing.F) {
	f.Add(`{"policy":"fifo","version":3}`, "high", "7")
	f.Add(`[{"Tenant":"t","ID":"a"},{},{}]`, "low", "0")
	f.Add("a/single\nb/batched", "d\x1fm\x1fsingle", "1700000000000")
	f.Add(`{"policy":"load_formula","weights":{"cpu":1e400}}`, "", "-1")
	f.Fuzz(func(t *testing.T, setting, priority, level string) {
		fuzzing.Bound(t, len(setting), func() {
			parsePolicy(setting)
			parseKeys(setting)
			parsePools(setting)
			parseRateKey(setting)
			drainedAt(setting)
		})
		if p := parsePolicy(setting); p != nil {
			require.NoError(t, p.Validate())
		}
		one := task.Task{Priority: task.Normal}
		m := parseOverride(task.Key{}, []any{nil, priority, level})
		m.Apply(&one)
		require.Contains(t, task.Priorities, one.Priority)
		require.True(t, one.Level >= 0 && one.Level <= task.MaxLevel)
	})
}
