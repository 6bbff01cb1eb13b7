package router

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// finisher counts how often its record is done.
type finisher struct{ done int }

func (f *finisher) Done()       { f.done++ }
func (f *finisher) Lost() bool  { return false }
func (f *finisher) Again(error) {}

// twin is one more record of the task "t", requeued so many times.
func twin(requeues int) (*decide.Item, *finisher) {
	tk := chat("t", "m")
	if requeues > 0 {
		tk.Progress = &task.Progress{Requeues: requeues}
	}
	it, f := newItem(tk, stream.TasksNormal), &finisher{}
	originOf(it).ack = records.NewAck(f, 1)
	return it, f
}

// world is a decider's effects that only remember what it did.
type world struct {
	wants []device.Want
}

func (w *world) Acquire(wants []device.Want, _ []device.Ask) ([]device.Grant, error) {
	grants := make([]device.Grant, len(wants))
	for i, want := range wants {
		w.wants = append(w.wants, want)
		grants[i] = device.Grant{Pool: want.Pool, N: want.N, Used: want.N, Lease: "l"}
	}
	return grants, nil
}

func (*world) Assign([]decide.Pick, time.Time)   {}
func (*world) Expire(*decide.Item, time.Time)    {}
func (*world) Park(*decide.Item, decide.Parking) {}
func (*world) Admit()                            {}
func (*world) SetAside(*decide.Item)             {}

func (*world) Recall(decide.Owner, []decide.Wanted) {}

func newTestDecider(t *testing.T, cfg Config) (*decide.Decider, *world) {
	t.Helper()
	w := &world{}
	d, err := NewDecider(cfg, 1, w)
	require.NoError(t, err)
	return d, w
}

// The records of all twins are done once the item that continues has arrived where it goes, and not
// before.
func TestTwinsAreDoneTogether(t *testing.T) {
	for name, order := range map[string][]int{"older first": {0, 1}, "newer first": {1, 0}, "three records": {1, 0, 2}, "newest first": {2, 1, 0, 1}, "equal": {0, 0}} {
		t.Run(name, func(t *testing.T) {
			d, _ := newTestDecider(t, testConfig())
			var items []*decide.Item
			var all []*finisher
			for _, n := range order {
				it, f := twin(n)
				items, all = append(items, it), append(all, f)
				d.Add(it, time.Now())
			}
			winner, ok := d.Cancel(items[0].Task.Key())
			require.True(t, ok)
			for _, it := range items {
				require.True(t, holder{nil, it.Offset}.carries(winner), "a record that holds up its partition must be found")
			}
			o := depart(winner)
			for _, f := range all {
				require.Zero(t, f.done, "done before the winner has arrived")
			}
			o.ack.Release()
			for _, f := range all {
				require.Equal(t, 1, f.done)
			}
		})
	}
}

// When another router reads the record of the item that continues, its riders still finish here.
func TestRidersOfALostItemAreDoneWithTheNextOne(t *testing.T) {
	d, _ := newTestDecider(t, testConfig())
	old, oldDone := twin(0)
	lower, lowerDone := twin(1)
	newer, newerDone := twin(2)
	for _, it := range []*decide.Item{old, lower, newer} {
		d.Add(it, time.Now())
	}
	d.Forget(newer, time.Now())
	winner, ok := d.Cancel(old.Task.Key())
	require.True(t, ok)
	require.Same(t, lower, winner)
	depart(winner).ack.Release()
	require.Equal(t, []int{1, 1, 0}, []int{oldDone.done, lowerDone.done, newerDone.done}, "the lost record is its new owner's to finish")
}

// Redis' clock may differ from this machine's. A device that seems to have just joined would start
// slowly.
func TestDevicesJoinByTheLocalClock(t *testing.T) {
	cfg := testConfig()
	cfg.SlowStart = 10 * time.Second
	now := time.Unix(1_000_000, 0)
	limits := func(ahead time.Duration) map[string]int {
		d, w := newTestDecider(t, cfg)
		f := decide.Fleet{}
		for _, id := range []string{"d0", "d1", "d2", "d3"} {
			one := dev(id, 4, "*")
			one.At, one.Age, one.JoinedAt = now.Add(ahead-2*time.Second), 2*time.Second, now.Add(ahead-time.Minute)
			f.Devices = append(f.Devices, one)
		}
		toLocalClock(f.Devices, now)
		require.Equal(t, now.Add(-time.Minute), f.Devices[0].JoinedAt)
		d.UpdateFleet(f, now)
		for range 40 {
			d.Add(newItem(&task.Task{Model: "m"}, stream.TasksNormal), now)
		}
		d.Step(now)
		got := map[string]int{}
		for _, want := range w.wants {
			got[want.Pool] = max(got[want.Pool], want.Limit)
		}
		return got
	}
	full := limits(0)
	require.Len(t, full, 4)
	for pool, limit := range full {
		require.GreaterOrEqual(t, limit, 4, pool)
	}
	require.Equal(t, full, limits(time.Hour))
	require.Equal(t, full, limits(-time.Hour))
}

// A setting of the decider that is not passed on would silently be zero.
func TestTheDeciderGetsAllSettings(t *testing.T) {
	cfg := testConfig()
	cfg.Binding, cfg.SlowStart, cfg.Tenants = "late", time.Second, map[string]string{"a": "2"}
	dc, err := cfg.decider()
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"a": 2}, dc.TenantWeights)
	v := reflect.ValueOf(dc)
	for i := range v.NumField() {
		require.False(t, v.Field(i).IsZero(), v.Type().Field(i).Name)
	}
	for _, bad := range []string{"0", "-1", "x", "NaN", "1e7"} {
		cfg.Tenants = map[string]string{"a": bad}
		_, err = cfg.decider()
		require.ErrorContains(t, err, "router.tenant_weights", bad)
	}
}
