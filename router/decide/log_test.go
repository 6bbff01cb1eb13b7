package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// partition is a partition of a simulated log.
type partition struct {
	source string
	tasks  []*task.Task
	read   int
	lost   bool
}

func (p *partition) Lost() bool  { return p.lost }
func (*partition) Settled() bool { return true }

// world is a decider between a simulated log and simulated devices, in virtual time.
type world struct {
	*ledger
	t        require.TestingT
	d        *Decider
	now      time.Time
	log      []*partition
	recalls  map[*partition][]Wanted
	recalled int

	service  time.Duration // of a task; 0: tasks never end
	running  map[int64][]string
	fleet    Fleet
	assigned map[string]time.Time // by task id
	order    []string
	expired  []string
	most     int // tasks in the window
}

func newWorld(t require.TestingT, cfg Config, f Fleet, service time.Duration) *world {
	w := &world{
		ledger: &ledger{used: map[string]int{}, asked: map[string]device.Ask{}}, t: t, now: t0, recalls: map[*partition][]Wanted{},
		service: service, running: map[int64][]string{}, fleet: f, assigned: map[string]time.Time{},
	}
	w.d = New(cfg, policyNamed(t, testPolicy), 1, w)
	w.d.UpdateFleet(f, w.now)
	return w
}

// partition returns a partition of the log; it is made when it is first asked for.
func (w *world) partition(source string, n int) *partition {
	for _, p := range w.log {
		if p.source == source && n == 0 && !p.lost {
			return p
		} else if p.source == source && !p.lost {
			n--
		}
	}
	p := &partition{source: source}
	w.log = append(w.log, p)
	return p
}

// send appends a task to the log.
func (w *world) send(tk *task.Task) {
	tk.SubmittedAt = w.now
	tk.Normalize(w.now)
	p := w.partition(topicOf(tk.Priority), 0)
	p.tasks = append(p.tasks, tk)
}

func (w *world) item(p *partition, offset int64) *Item {
	tk := p.tasks[offset]
	return &Item{Task: tk, Origin: p, Owner: p, Offset: offset, Source: p.source, Size: 1000, ReadyAt: tk.ReadyAt()}
}

// read reads on in a partition; false if there is nothing, or no room.
func (w *world) read(p *partition, n int) bool {
	var items []*Item
	for ; len(items) < n && p.read+len(items) < len(p.tasks); items = append(items, w.item(p, int64(p.read+len(items)))) {
	}
	if len(items) == 0 || !w.sort(items) {
		return false
	}
	p.read += len(items)
	return true
}

func (w *world) sort(items []*Item) bool {
	kept, _, ok := w.d.Sort(items, w.now)
	for _, it := range kept {
		w.d.Add(it, w.now)
		w.d.Land(it.Owner, it.Offset)
	}
	w.most = max(w.most, w.d.Len())
	return ok
}

// deliver hands over what was recalled, one task at a time or many.
func (w *world) deliver() {
	for p, wanted := range w.recalls {
		delete(w.recalls, p)
		if p.lost {
			continue
		}
		var items []*Item
		for _, x := range wanted {
			it := w.item(p, x.Offset)
			it.Seen = x.Seen
			items = append(items, it)
		}
		w.recalled += len(items)
		require.True(w.t, w.sort(items))
	}
}

// pass lets time pass in steps of 10 ms, in which the router reads as much as it can.
func (w *world) pass(long time.Duration) {
	for end := w.now.Add(long); w.now.Before(end); {
		w.now = w.now.Add(10 * time.Millisecond)
		if w.now.UnixMilli()%1000 == 0 {
			w.d.UpdateFleet(w.fleet, w.now)
		}
		w.finish()
		for range 5 { // recalls take 2 ms
			for _, p := range w.log {
				for !p.lost && w.read(p, 500) {
				}
			}
			w.deliver()
			w.d.Step(w.now)
			w.now = w.now.Add(2 * time.Millisecond)
		}
		w.now = w.now.Add(-10 * time.Millisecond)
	}
}

// finish ends the tasks whose service is over.
func (w *world) finish() {
	freed := map[string]int{}
	for at, pools := range w.running {
		if at > w.now.UnixNano() {
			continue
		}
		delete(w.running, at)
		for _, p := range pools {
			w.used[p]--
			freed[p] = w.used[p]
		}
	}
	w.d.UpdateUsed(freed)
}

func (w *world) Assign(picks []Pick, now time.Time) {
	for i := range picks {
		id := picks[i].Item.Task.ID
		if _, twice := w.assigned[id]; twice {
			require.Fail(w.t, "assigned twice", id)
		}
		w.assigned[id] = now
		w.order = append(w.order, id)
		if w.service > 0 {
			end := now.Add(w.service).UnixNano()
			w.running[end] = append(w.running[end], picks[i].Pool)
		}
	}
}

func (w *world) Expire(it *Item, _ time.Time) { w.expired = append(w.expired, it.Task.ID) }

func (w *world) Recall(o Owner, wanted []Wanted) {
	p := o.(*partition)
	w.recalls[p] = append(w.recalls[p], wanted...)
}

func many(w *world, n int, make func(i int) *task.Task) (ids []string) {
	for i := range n {
		tk := make(i)
		tk.ID = fmt.Sprintf("%s-%s-%d-%d", tk.Tenant, tk.Model, tk.Level, i)
		w.send(tk)
		ids = append(ids, tk.ID)
	}
	return ids
}

// ran fails the test unless all tasks were assigned. (Contains compares every key of a map.)
func (w *world) ran(ids []string) {
	for _, id := range ids {
		if _, ok := w.assigned[id]; !ok {
			require.Fail(w.t, "not assigned", id)
		}
	}
}

func fleetOf(ds ...device.Device) Fleet {
	for i := range ds {
		ds[i].JoinedAt = t0.Add(-time.Hour)
	}
	f := known(ds...)
	for k, r := range f.Rates {
		r.At = t0
		f.Rates[k] = r
	}
	return f
}

// Whatever fills the window does not hide what comes behind it.
func TestSharesAndLevelsHoldBeyondTheWindow(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("d", 4, "m")), 100*time.Millisecond)
	many(w, 20_000, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
	w.pass(time.Second)
	w.now = w.now.Add(time.Second)
	others := many(w, 10, func(int) *task.Task { return &task.Task{Tenant: "b", Model: "m"} })
	urgent := many(w, 10, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m", Level: 9} })
	before := len(w.order)
	w.pass(2 * time.Second)
	w.ran(append(others, urgent...))
	mine := map[byte]int{}
	for _, id := range w.order[before:] {
		if mine[id[0]]++; mine['b'] == len(others) {
			break
		}
	}
	require.Less(t, mine['a'], 2*len(others)+8, "the tenants must take turns")
	require.LessOrEqual(t, w.most, testConfig().MaxPendingTasks)
	require.Zero(t, w.parked)
	w.service = time.Millisecond
	w.pass(90 * time.Second)
	require.Len(t, w.assigned, 20_020)
}

// A model whose devices idle is not hidden by one whose devices are busy, nor by tasks without a device.
func TestIdleDevicesGetWorkFromBeyondTheWindow(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("busy", 4, "m"), dev("idle", 4, "n")), 0)
	many(w, 5000, func(i int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
	many(w, 5000, func(i int) *task.Task { return &task.Task{Tenant: "b", Model: "nowhere"} })
	many(w, 5000, func(i int) *task.Task {
		return &task.Task{Tenant: "c", Model: "n", NotBefore: t0.Add(365 * 24 * time.Hour)}
	})
	many(w, 3000, func(i int) *task.Task { return &task.Task{Tenant: fmt.Sprint("e", i), Model: "m"} })
	behind := many(w, 4, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "n"} })
	w.pass(time.Second)
	w.ran(behind)
	require.Zero(t, w.parked)
}

// Ten thousand tenants, or five thousand models, behind a tenant with a million tasks.
func TestSmallTenantsAndModelsBehindAMillionTasks(t *testing.T) {
	backlog := 1_000_000
	if testing.Short() {
		backlog = 100_000
	}
	cfg := testConfig()
	cfg.MaxPendingTasks, cfg.MaxRoundTasks = 4096, 256
	for name, c := range map[string]struct {
		n     int
		fleet Fleet
		task  func(i int) *task.Task
	}{
		"tenants": {10_000, fleetOf(dev("d", 600, "m")), func(i int) *task.Task { return &task.Task{Tenant: fmt.Sprint("t", i), Model: "m"} }},
		"models":  {5_000, fleetOf(dev("d", 4, "m"), dev("e", 600, "*")), func(i int) *task.Task { return &task.Task{Tenant: "t", Model: fmt.Sprint("m", i)} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, cfg, c.fleet, 100*time.Millisecond)
			many(w, backlog, func(int) *task.Task { return &task.Task{Tenant: "a", Model: "m"} })
			w.pass(100 * time.Millisecond)
			ids := many(w, c.n, c.task)
			sent := w.now
			w.pass(5 * time.Second)
			late := 0
			for _, id := range ids {
				if at, ok := w.assigned[id]; !ok || at.Sub(sent) > 5*time.Second {
					late++
				}
			}
			require.Zero(t, late)
			require.LessOrEqual(t, w.most, cfg.MaxPendingTasks)
			tasks, bytes := w.d.Aside(topicOf(task.Normal))
			require.Greater(t, tasks, backlog/2)
			require.LessOrEqual(t, bytes, cfg.MaxAsideBytes)
			t.Logf("%d tasks aside take %d bytes; %d were recalled", tasks, bytes, w.recalled)
		})
	}
}

// A fleet that is down costs nothing: no task is written again, and few are read again.
func TestNothingIsWrittenOrReadAgainWhileNothingCanRun(t *testing.T) {
	w := newWorld(t, testConfig(), Fleet{}, time.Millisecond)
	many(w, 20_000, func(i int) *task.Task { return &task.Task{Tenant: fmt.Sprint(i % 10), Model: fmt.Sprint("m", i%3)} })
	many(w, 4000, func(i int) *task.Task {
		return &task.Task{Tenant: "later", Model: "m0", NotBefore: t0.Add(365 * 24 * time.Hour)}
	})
	w.pass(20 * time.Second)
	require.Zero(t, w.parked)
	require.Zero(t, w.recalled)
	w.fleet = fleetOf(dev("d", 100, "*"))
	w.d.UpdateFleet(w.fleet, w.now)
	w.pass(20 * time.Second)
	require.Len(t, w.assigned, 20_000)
}

// A task that waits for a year is read again a few times, and runs when its time has come.
func TestTasksAsideRunInTime(t *testing.T) {
	w := newWorld(t, testConfig(), fleetOf(dev("d", 100, "m")), time.Millisecond)
	many(w, 300, func(i int) *task.Task {
		return &task.Task{Tenant: "a", Model: "m", NotBefore: t0.Add(time.Hour + time.Duration(i)*24*time.Hour)}
	})
	w.pass(100 * time.Millisecond)
	for range 301 {
		w.now = w.now.Add(23*time.Hour + 59*time.Minute)
		w.pass(time.Second)
		w.now = w.now.Add(59 * time.Second)
		w.pass(time.Second)
	}
	require.Len(t, w.assigned, 300)
	for id, at := range w.assigned {
		var i int
		_, err := fmt.Sscanf(id, "a-m-0-%d", &i)
		require.NoError(t, err)
		require.False(t, at.Before(t0.Add(time.Hour+time.Duration(i)*24*time.Hour)), "%s ran at %s", id, at)
	}
	require.Less(t, w.recalled, 300*8)
}

// The deadline of a task ends its wait, wherever it waits.
func TestTasksAsideExpire(t *testing.T) {
	w := newWorld(t, testConfig(), Fleet{}, time.Millisecond)
	ids := many(w, 3000, func(i int) *task.Task {
		tk := &task.Task{Tenant: "a", Model: "m", Deadline: t0.Add(10*time.Second + time.Duration(i)*time.Millisecond)}
		if i%2 == 0 {
			tk.NotBefore = t0.Add(time.Hour)
		}
		return tk
	})
	w.pass(9 * time.Second)
	require.Empty(t, w.expired)
	w.pass(5 * time.Second)
	require.ElementsMatch(t, ids, w.expired)
}

// Whatever is read, set aside, recalled, lost and read again by the next owner, in whatever order: no task
// disappears, none is assigned twice by one owner, and the bounds hold.
func TestNoTaskDisappears(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := testConfig()
		cfg.MaxPendingTasks = 64
		f := fleetOf(dev("d", 4, "m"), dev("e", 2, "n"))
		w := newWorld(t, cfg, f, 100*time.Millisecond)
		ids := map[string]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				base := len(ids)
				tenant, model := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), rapid.SampledFrom([]string{"m", "n", "nowhere"}).Draw(t, "model")
				level, wait := rapid.IntRange(0, 9).Draw(t, "level"), rapid.IntRange(-3, 3).Draw(t, "minutes")
				deadline, p := rapid.IntRange(-4, 4).Draw(t, "deadline"), rapid.SampledFrom(task.Priorities).Draw(t, "priority")
				for i := range rapid.IntRange(1, 200).Draw(t, "n") {
					tk := &task.Task{ID: fmt.Sprint("t", base+i), Tenant: tenant, Model: model, Level: level, Priority: p}
					if wait > 0 {
						tk.NotBefore = w.now.Add(time.Duration(wait) * time.Minute)
					}
					if deadline > 0 {
						tk.Deadline = w.now.Add(time.Duration(deadline) * time.Minute)
					}
					w.send(tk)
					ids[tk.ID] = true
				}
			},
			"read": func(t *rapid.T) {
				if p := w.draw(t); !p.lost {
					w.read(p, rapid.IntRange(1, 100).Draw(t, "n"))
				}
			},
			"recalled": func(*rapid.T) { w.deliver() },
			"pass": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 20).Draw(t, "steps")) * 10 * time.Millisecond)
			},
			"jump": func(*rapid.T) { w.now = w.now.Add(time.Minute) },
			"devices change": func(t *rapid.T) {
				w.fleet = rapid.SampledFrom([]Fleet{f, {}, fleetOf(dev("d", 1, "n"))}).Draw(t, "fleet")
				w.d.UpdateFleet(w.fleet, w.now)
			},
			"old": func(t *rapid.T) {
				below := rapid.Int64Range(0, 50).Draw(t, "below")
				w.d.RecallBefore(func(Owner) int64 { return below }, 10)
			},
			"another order": func(t *rapid.T) {
				w.d.SetPolicy(policyNamed(t, rapid.SampledFrom([]string{"fifo", testPolicy}).Draw(t, "policy")), BindAuto, w.now)
			},
			"lose": func(t *rapid.T) {
				p := w.draw(t)
				if p.lost {
					t.Skip("it is lost already")
				}
				p.lost = true
				next := &partition{source: p.source} // the next owner reads what was not finished
				expired := map[string]bool{}
				for _, id := range w.expired {
					expired[id] = true
				}
				for _, tk := range p.tasks {
					if _, ok := w.assigned[tk.ID]; !ok && !expired[tk.ID] {
						next.tasks = append(next.tasks, tk)
					}
				}
				w.log = append(w.log, next)
				for it := range w.d.Pending() {
					if it.Origin.Lost() {
						w.d.Forget(it, w.now)
					}
				}
				w.d.DropLost()
			},
			"": func(t *rapid.T) { w.checkAside(t) },
		})
		w.fleet, w.service = fleetOf(dev("d", 2000, "*")), 10*time.Millisecond
		w.d.UpdateFleet(w.fleet, w.now)
		for range 6 {
			w.now = w.now.Add(time.Minute)
			w.pass(300 * time.Millisecond)
		}
		w.checkAside(t)
		require.Zero(t, w.d.Len())
		for l := range w.d.window.lists {
			require.Fail(t, "a task is left", "%+v of queue %+v, room %v", l.listKey, l.queue, w.d.window.hasRoom(w.d.window.source(l.source), 1))
		}
		require.Empty(t, w.d.window.coming)
		require.Len(t, ids, len(w.assigned)+len(w.expired), "every task runs or expires, once")
		for _, c := range w.d.window.classes {
			require.Zero(t, c.backlogged)
			require.Zero(t, c.hungry.len())
		}
	})
}

// draw returns one of the partitions.
func (w *world) draw(t *rapid.T) *partition {
	if len(w.log) == 0 {
		t.Skip("there is no partition")
	}
	return w.log[rapid.IntRange(0, len(w.log)-1).Draw(t, "partition")]
}

// checkAside compares every count of what is aside with what the lists hold.
func (w *world) checkAside(t require.TestingT) {
	win := w.d.window
	perQueue, perDemand, tasks, waiting, bytes := map[*queue]int{}, map[*demand]int{}, map[string]int{}, map[string]int{}, map[string]int64{}
	for l := range win.lists {
		require.Positive(t, l.n)
		if tasks[l.source] += l.n; l.queue == nil {
			waiting[l.source] += l.n
		}
		bytes[l.source] += l.cost()
		if l.queue != nil {
			perQueue[l.queue] += l.n
			perDemand[l.queue.demand] += l.n
			require.Same(t, l, l.queue.aside.all[l.at])
			require.Equal(t, win.rankOf(l), l.rank)
		} else {
			require.Same(t, l, win.times.all[l.at])
		}
	}
	onTheWay := map[*queue]int{}
	for _, c := range win.coming {
		if c.queue != nil {
			onTheWay[c.queue]++
		}
	}
	for _, s := range win.sources {
		require.Equal(t, tasks[s.name], s.aside)
		require.Equal(t, waiting[s.name], s.waiting)
		require.Equal(t, bytes[s.name], s.asideBytes)
	}
	for _, dm := range win.demands {
		require.Equal(t, perDemand[dm], dm.shelved)
		backlogged := map[*flow]int{}
		for f, q := range dm.queues {
			require.Equal(t, perQueue[q], q.shelved)
			require.Equal(t, onTheWay[q], q.coming)
			require.Equal(t, q.counted, !q.blocked && q.ready.len()+q.shelved+q.coming > 0, "a queue counts if it has tasks that can run")
			require.False(t, q.blocked && q.hunger >= 0)
			if q.counted {
				backlogged[f]++
			}
		}
	}
	require.LessOrEqual(t, w.most, w.d.cfg.MaxPendingTasks+500, "expired tasks only pass through")
}
