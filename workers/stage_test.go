package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

func TestBatchesBecomeResults(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 4}, fleet.Spec{ID: "e", Slots: 1})
	y.workers(testConfig())
	var tasks []*task.Task
	for i := range 20 {
		tasks = append(tasks, chat(fmt.Sprint("chat-", i)))
	}
	y.send("d", tasks...)
	y.send("e", embed("one", `"x"`), embed("two", `["y","z"]`), embed("tokens", `[1,2,3]`), embed("last", `"w"`))
	bad := embed("bad", `"q"`)
	bad.Input = task.Input(`{"input":{"no":"text"}}`)
	y.send("e", embed("with bad", `["a"]`), bad, embed("mixed", `["ok",{}]`))
	require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: "d", Value: []byte("garbage")}))
	for _, tk := range tasks {
		res := y.only(tk.ID)
		require.Equal(t, task.Success, res.State)
		require.Equal(t, "d", res.DeviceID)
		require.Len(t, res.Attempts, 1)
		require.Positive(t, res.Usage.OutputTokens)
	}
	for id, vectors := range map[string]int{"one": 1, "two": 2, "tokens": 1, "last": 1, "with bad": 1} {
		res := y.only(id)
		require.Equal(t, task.Success, res.State, id)
		require.Equal(t, vectors, countOf(string(res.Output), `"embedding":[`), id)
	}
	for _, id := range []string{"bad", "mixed"} {
		res := y.only(id)
		require.Equal(t, task.Failed, res.State)
		require.Equal(t, task.ClassInvalid, res.Error.Class)
		require.NotEmpty(t, res.Output, "the device's explanation")
	}
	y.until("the rest", func() bool { return y.dead == 1 && y.count(task.TaskSucceeded) == 25 && y.count(task.TaskFailed) == 2 })
	require.LessOrEqual(t, y.fleet.Device("d").Stats().MaxRunning, 4)
	require.Zero(t, y.fleet.Device("d").Stats().Waiting)
	y.committed()
	y.eventually("credits are given back", func() bool { return y.creditsUsed("d")+y.creditsUsed("e") == 0 })
	y.eventually("rates are reported", func() bool {
		rates, _, err := y.deps.Rates.Load(t.Context())
		return err == nil && rates[device.RateKey{DeviceID: "d", Model: "m"}].Samples == 20 && rates[device.RateKey{DeviceID: "e", Model: "m", Batched: true}].Samples > 0
	})
}

// One request may ask for many tasks. Each has its attempt in the log, and the request is counted with one of them.
func TestABatchedRequestIsCountedOnce(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "e", Slots: 1})
	cfg := testConfig()
	cfg.MaxBatchedTasks = 8
	y.workers(cfg)
	var tasks []*task.Task
	for i := range 20 {
		tasks = append(tasks, embed(fmt.Sprint("e-", i), `"x"`))
	}
	y.send("e", tasks...)
	y.until("every attempt", func() bool { return y.count(task.AttemptSucceeded) == 20 })
	requests := int64(0)
	for _, e := range y.written(task.AttemptSucceeded) {
		var note struct {
			Tasks int `json:"request_tasks"`
			Index int `json:"request_index"`
		}
		require.NoError(t, json.Unmarshal(e.Detail, &note))
		require.LessOrEqual(t, note.Tasks, 8)
		if note.Index == 0 {
			requests++
		}
	}
	require.Equal(t, y.fleet.Device("e").Stats().Requests, requests)
	require.Less(t, requests, int64(20))
	y.committed()
}

func countOf(s, part string) (n int) {
	for i := 0; i+len(part) <= len(s); i++ {
		if s[i:i+len(part)] == part {
			n++
		}
	}
	return n
}

// A task that failed on a device, and leaves it because of the breaker that it opened, does not come back to be the
// request with which the breaker tries again.
func TestATaskDoesNotComeBackToTheDeviceThatFailedIt(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "sick", Slots: 2})
	cfg := testConfig()
	cfg.BreakerFails, cfg.BreakerRatio, cfg.BreakerOpen, cfg.BreakerOpenMax = 1, 0, time.Hour, time.Hour
	y.workers(cfg)
	y.fleet.Device("sick").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 503})
	y.send("sick", chat("moves"))
	tk := y.back("moves", 1)
	require.Equal(t, 1, tk.Tried(), "the second time, the breaker was open")
	require.Equal(t, []string{"sick"}, tk.Progress.Exclude)
}

func TestRetryHereThenElsewhereThenDegradeOrFail(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "sick", Slots: 2}, fleet.Spec{ID: "well"})
	cfg := testConfig()
	cfg.BreakerFails, cfg.BreakerRatio = 1000, 1
	y.workers(cfg)
	sick := y.fleet.Device("sick")
	sick.SetFault(fleet.Fault{Kind: fleet.Fail, Times: 1})
	y.send("sick", chat("once"))
	res := y.only("once")
	require.Equal(t, task.Success, res.State, "again here, after a backoff")
	require.Equal(t, []int{1, 2}, []int{res.Attempts[0].Number, res.Attempts[1].Number})
	require.Equal(t, task.ClassDevice, res.Attempts[0].Class)

	sick.SetFault(fleet.Fault{Kind: fleet.Fail})
	y.send("sick", chat("moves"))
	tk := y.back("moves", 1)
	require.Equal(t, []string{"sick"}, tk.Progress.Exclude)
	require.Equal(t, 2, tk.Tried())
	require.Equal(t, 1, tk.Progress.Requeues)
	require.NotZero(t, tk.Progress.BackoffMS)
	y.send("well", tk)
	res = y.only("moves")
	require.Equal(t, task.Success, res.State)
	require.Len(t, res.Attempts, 3)
	require.Equal(t, "well", res.DeviceID)

	big := chat("degrades")
	big.Model, big.Degrade, big.MaxAttempts = "big", true, 1
	y.send("sick", big)
	tk = y.back("degrades", 1)
	require.Equal(t, "small", tk.Model)
	require.Empty(t, tk.Progress.Exclude)
	y.send("well", tk)
	res = y.only("degrades")
	require.Equal(t, task.Success, res.State)
	require.Equal(t, []string{"small", "big"}, []string{res.Model, res.RequestedModel})
	require.Contains(t, string(res.Output), `"model":"small"`)

	last := chat("fails")
	last.MaxAttempts = 2
	y.send("sick", last)
	res = y.only("fails")
	require.Equal(t, task.Failed, res.State)
	require.Equal(t, task.ClassDevice, res.Error.Class)
	require.Len(t, res.Attempts, 2)
	y.committed()
	y.eventually("credits are given back", func() bool { return y.creditsUsed("sick")+y.creditsUsed("well") == 0 })
}

func TestAThrottledDeviceGetsNoRequestsForAWhile(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d"})
	cfg := testConfig()
	cfg.BreakerFails = 1
	y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.RateLimit, Times: 1})
	began := time.Now()
	y.send("d", chat("first"), chat("second"))
	tk := y.back("first", 1)
	require.Empty(t, tk.Progress.Exclude)
	require.Equal(t, task.ClassThrottled, tk.Progress.Attempts[0].Class)
	y.eventually("the routers learn it", func() bool {
		_, hs, err := y.deps.Rates.Load(t.Context())
		return err == nil && hs["d"].ThrottledUntil.After(began) && hs["d"].State == "closed"
	})
	require.Equal(t, task.Success, y.only("second").State)
	require.GreaterOrEqual(t, time.Since(began), cfg.BackoffMax, "nothing is sent before the device allows it")
}

func TestTheBreakerOpensHalfOpensAndCloses(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1})
	cfg := testConfig()
	cfg.LocalRetries, cfg.MaxAttempts, cfg.BreakerFails = 0, 20, 3
	y.workers(cfg)
	d := y.fleet.Device("d")
	d.SetFault(fleet.Fault{Kind: fleet.Fail})
	var tasks []*task.Task
	for i := range 10 {
		tasks = append(tasks, chat(fmt.Sprint("t-", i)))
	}
	y.send("d", tasks...)
	y.until("all to come back", func() bool { return len(y.requeued) == 10 && y.count(task.BreakerOpened) == 1 })
	require.EqualValues(t, 3, d.Stats().Requests, "an open breaker lets nothing through")
	untried := 0
	for _, tk := range y.returned() {
		if tk.Tried() == 0 {
			untried++
			require.Empty(t, tk.Progress.Exclude)
			require.NotZero(t, tk.Progress.BackoffMS, "or it would come back at once")
		}
	}
	require.Equal(t, 7, untried)
	health := func() device.Health {
		_, hs, err := y.deps.Rates.Load(t.Context())
		require.NoError(t, err)
		return hs["d"]
	}
	y.eventually("the routers learn it", func() bool { return health().State != "" })
	y.until("it to be half-open", func() bool { return y.count(task.BreakerHalfOpen) == 1 })
	y.redis.Empty()
	y.eventually("the routers learn it again when Redis has lost it", func() bool { return health().State == "half-open" })
	y.send("d", chat("test")) // fails: open again
	y.until("it to open again", func() bool { return y.count(task.BreakerOpened) == 2 })
	d.ClearFault()
	y.until("it to be half-open again", func() bool { return y.count(task.BreakerHalfOpen) == 2 })
	y.send("d", chat("well"))
	require.Equal(t, task.Success, y.only("well").State)
	y.until("it to close", func() bool { return y.count(task.BreakerClosed) == 1 })
	y.eventually("the routers learn it", func() bool { return health().State == "closed" })
}

// Faults that are not the device's open no breaker.
func TestTheBreakerStaysClosedForOtherFaults(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 4})
	cfg := testConfig()
	cfg.BreakerFails = 2
	y.workers(cfg)
	d := y.fleet.Device("d")
	var ids []string
	for i := range 6 {
		bad := chat(fmt.Sprint("bad-", i))
		bad.Input = task.Input(`{"messages":7}`)
		ids = append(ids, bad.ID)
		y.send("d", bad)
	}
	for _, id := range ids {
		require.Equal(t, task.Failed, y.only(id).State)
	}
	d.SetFault(fleet.Fault{Kind: fleet.Hang})
	for i := range 6 {
		late := chat(fmt.Sprint("late-", i))
		late.Deadline = time.Now().Add(150 * time.Millisecond)
		y.send("d", late)
	}
	for i := range 6 {
		require.Equal(t, task.Expired, y.only(fmt.Sprint("late-", i)).State)
	}
	d.ClearFault()
	y.send("d", chat("well"))
	require.Equal(t, task.Success, y.only("well").State)
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Zero(t, y.count(task.BreakerOpened))
}

func TestExpiredTasksDoNotRun(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d"})
	y.workers(testConfig())
	late := chat("late")
	late.Deadline = time.Now().Add(-time.Second)
	y.send("d", late, chat("other"))
	res := y.only("late")
	require.Equal(t, task.Expired, res.State)
	require.Empty(t, res.Attempts)
	require.Equal(t, task.Success, y.only("other").State)
	require.Zero(t, y.fleet.Device("d").Seen("late"))
	y.committed()
}

func TestCancelledTasksStop(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 1}, fleet.Spec{ID: "f", Slots: 1})
	cfg := testConfig()
	cfg.BackoffMin, cfg.BackoffMax = time.Hour, time.Hour
	s, _ := y.workers(cfg)
	d, f := y.fleet.Device("d"), y.fleet.Device("f")
	d.SetFault(fleet.Fault{Kind: fleet.Hang})
	f.SetFault(fleet.Fault{Kind: fleet.Fail, Times: 1})
	y.send("d", chat("running"))
	y.eventually("it runs", func() bool { return d.Stats().InFlight == 1 })
	y.send("d", chat("queued"), chat("stays"))
	y.send("f", chat("pausing"))
	y.eventually("it pauses", func() bool {
		s.backoffs.mu.Lock()
		defer s.backoffs.mu.Unlock()
		return len(s.backoffs.timers) == 1 && s.tasks.get(task.Key{Tenant: task.DefaultTenant, ID: "stays"}) != nil
	})
	d.ClearFault()
	key := func(id string) task.Key { return task.Key{Tenant: task.DefaultTenant, ID: id} }
	require.NoError(t, y.deps.Cancels.Cancel(t.Context(), key("queued"), key("pausing"), key("running"), key("early")))
	require.Equal(t, task.Success, y.only("stays").State)
	y.send("d", chat("early"), chat("after"))
	require.Equal(t, task.Success, y.only("after").State)
	y.until("four cancels", func() bool { return y.count(task.TaskCancelled) == 4 })
	y.committed()
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Len(t, y.results, 2, "the cancel itself writes the result")
	require.Zero(t, y.count(task.BreakerOpened))
	require.Zero(t, d.Seen("queued")+d.Seen("early"))
	y.eventually("credits are given back", func() bool { return y.creditsUsed("d")+y.creditsUsed("f") == 0 })
}

func TestDrainFinishesRunningTasksAndGivesBackTheRest(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 2, ServiceTime: 500 * time.Millisecond}, fleet.Spec{ID: "f"})
	cfg := testConfig()
	cfg.BackoffMin, cfg.BackoffMax = time.Hour, time.Hour
	s, stop := y.workers(cfg)
	y.fleet.Device("f").SetFault(fleet.Fault{Kind: fleet.Fail})
	y.send("f", chat("pausing"))
	y.eventually("it pauses", func() bool {
		s.backoffs.mu.Lock()
		defer s.backoffs.mu.Unlock()
		return len(s.backoffs.timers) == 1
	})
	y.send("d", chat("a"), chat("b"), chat("c"), chat("d"), chat("e"))
	y.eventually("two run", func() bool { return y.fleet.Device("d").Stats().Running == 2 })
	stop()
	y.until("all of them", func() bool { return len(y.results)+len(y.requeued) == 6 })
	require.Equal(t, task.Success, y.only("a").State)
	require.Equal(t, task.Success, y.only("b").State)
	for _, tk := range y.returned() {
		require.Zero(t, tk.Progress.BackoffMS, "another worker may have it at once")
		require.Empty(t, tk.Progress.Exclude)
	}
	require.Equal(t, 1, y.back("pausing", 1).Tried())
	y.committed()
	require.Zero(t, y.creditsUsed("d"))
}

func TestDrainGivesBackTasksThatDoNotEnd(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d", Slots: 2})
	cfg := testConfig()
	cfg.DrainTimeout = 50 * time.Millisecond
	_, stop := y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Hang})
	y.send("d", chat("hangs"))
	y.send("d", embed("batched-1", `"x"`), embed("batched-2", `"y"`))
	y.eventually("they run", func() bool { return y.fleet.Device("d").Stats().InFlight == 2 })
	stop()
	for _, id := range []string{"hangs", "batched-1", "batched-2"} {
		tk := y.back(id, 1)
		require.Equal(t, task.ClassDraining, tk.Progress.Attempts[0].Class)
		require.Empty(t, tk.Progress.Exclude)
	}
	y.committed()
}

// Workers come and go while tasks run; tasks that they give back are sent again, as by a router. Every
// task ends.
func TestAnotherWorkerTakesOver(t *testing.T) {
	specs := make([]fleet.Spec, 6)
	for i := range specs {
		specs[i] = fleet.Spec{ID: fmt.Sprint("d", i), Slots: 2, ServiceTime: 5 * time.Millisecond}
	}
	y := newYard(t, specs...)
	y.mu.Lock()
	n := 0
	y.again = func(tk *task.Task) {
		n++
		d := y.fleet.Device(fmt.Sprint("d", n%6))
		if err := y.client.Produce(context.Background(), stream.Message{Topic: stream.Batches, Key: d.ID(), Value: frameOf(t, d, y.deps.Credits, tk)}); err != nil {
			t.Error(err)
		}
	}
	y.mu.Unlock()
	_, stopFirst := y.workers(testConfig())
	var all []string
	for i := range 60 {
		var tasks []*task.Task
		for k := range 5 {
			tk := chat(fmt.Sprintf("t-%d-%d", i, k))
			tasks = append(tasks, tk)
			all = append(all, tk.ID)
		}
		y.send(fmt.Sprint("d", i%6), tasks...)
	}
	y.until("the first results", func() bool { return len(y.results) > 10 })
	_, stopSecond := y.workers(testConfig()) // takes over half of the devices
	y.until("more results", func() bool { return len(y.results) > 60 })
	stopFirst()
	y.workers(testConfig())
	stopSecond()
	y.until("every result", func() bool { return len(y.results) == len(all) })
	y.committed()
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, id := range all {
		require.Equal(t, task.Success, y.results[id][0].State, id)
	}
	require.Zero(t, y.count(task.BreakerOpened))
}

// A device that fails on one task of a batched request answers 500 for all.
func TestATaskThatBreaksTheDeviceFailsAlone(t *testing.T) {
	mux := http.NewServeMux()
	var requests atomic.Int64
	mux.HandleFunc("POST "+task.EndpointEmbeddings, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		var asked struct{ Input json.RawMessage }
		if json.NewDecoder(r.Body).Decode(&asked) != nil || strings.Contains(string(asked.Input), "poison") {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		var items []json.RawMessage
		if json.Unmarshal(asked.Input, &items) != nil {
			items = []json.RawMessage{asked.Input}
		}
		data := make([]map[string]any, len(items))
		for i := range data {
			data[i] = map[string]any{"index": i, "embedding": []int{1}}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	y := newYard(t, fleet.Spec{ID: "unused"})
	cfg := testConfig()
	cfg.MaxBatchedTasks, cfg.MaxAttempts = 64, 1
	y.workers(cfg)
	b := task.Batch{ID: "b", Device: task.DeviceRef{ID: "d", URL: srv.URL, Slots: 1}, Endpoint: task.EndpointEmbeddings, Model: "m"}
	for i := range 40 {
		tk := embed(fmt.Sprint("e-", i), `"x"`)
		if i == 20 {
			tk = embed("bad", `"poison"`)
		}
		tk.Normalize(time.Now())
		b.Assignments = append(b.Assignments, task.Assignment{Task: *tk, Device: b.Device, Attempt: 1, AssignedAt: time.Now()})
	}
	frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{b})
	require.NoError(t, err)
	require.NoError(t, y.client.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: "d", Value: frame}))
	y.until("every task", func() bool { return len(y.results) == 40 })
	for id, rs := range y.answers() {
		want := task.Success
		if id == "bad" {
			want = task.Failed
		}
		require.Len(t, rs, 1)
		require.Equal(t, want, rs[0].State, id)
		require.Len(t, rs[0].Attempts, 1, "the batched request does not count as their attempt")
	}
	require.LessOrEqual(t, requests.Load(), int64(1+2*6), "it is found by halving")
	y.committed()
}

// Routers send a half-open device only one task. Its next owner starts with a closed breaker and must
// report that.
func TestTheNextOwnerOfADeviceReportsItsOwnBreaker(t *testing.T) {
	y := newYard(t, fleet.Spec{ID: "d"})
	cfg := testConfig()
	cfg.BreakerFails, cfg.LocalRetries, cfg.BreakerOpen = 1, 0, 10*time.Millisecond
	state := func() string {
		_, hs, err := y.deps.Rates.Load(t.Context())
		require.NoError(t, err)
		return hs["d"].State
	}
	first, stop := y.workers(cfg)
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Fail, Times: 1})
	y.send("d", chat("fails"))
	y.back("fails", 1)
	y.eventually("half-open", func() bool { return state() == "half-open" })

	// It loses the partition, as in a rebalance, and reports the device no more.
	for p := range 3 {
		first.partitionLost(p)
	}
	require.Empty(t, first.allRunners())
	require.Empty(t, newReporter(first).healths(first.allRunners(), time.Now()))
	stop()

	second, _ := y.workers(cfg)
	y.send("d", chat("well"))
	require.Equal(t, task.Success, y.only("well").State)
	y.eventually("closed", func() bool { return state() == "closed" })

	// A device without work does not stay half-open when its runner is retired.
	y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 502, Times: 1}) // 500 would only count a quarter
	y.send("d", chat("fails again"))
	y.back("fails again", 1)
	y.eventually("half-open again", func() bool { return state() == "half-open" })
	second.retire(0)
	y.eventually("closed again", func() bool { return state() == "closed" })
}
