package api

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

const aBeat = `{"url":"http://10.0.0.5:8000","models":["m"],"tags":["gpu"],"slots":4}`

func TestDrainDevice(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "POST", "/v1/devices/d1/drain", "").problem(t, 404)
	b.do(t, "POST", "/v1/devices/d%201/drain", "").problem(t, 422)
	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/d1/heartbeat", aBeat).status)
	require.JSONEq(t, `{"device_id":"d1","drained":true,"changed":true}`, b.do(t, "POST", "/v1/devices/d1/drain", "", tenantHeader, "ops").body)
	require.JSONEq(t, `{"device_id":"d1","drained":true,"changed":false}`, b.do(t, "POST", "/v1/devices/d1/drain", "").body)
	var l DeviceList
	b.do(t, "GET", "/v1/devices", "").into(t, &l)
	require.True(t, l.Devices[0].Draining && l.Devices[0].Drained)
	require.NotNil(t, l.Devices[0].Since)
	require.Empty(t, l.Absent)

	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/d1/heartbeat", `{"leaving":true}`).status)
	l = DeviceList{}
	b.do(t, "GET", "/v1/devices", "").into(t, &l)
	require.Empty(t, l.Devices)
	require.Len(t, l.Absent, 1, "what is drained is told also while it is away")
	require.Equal(t, "d1", l.Absent[0].ID)
	require.JSONEq(t, `{"device_id":"d1","drained":false,"changed":true}`, b.do(t, "POST", "/v1/devices/d1/undrain", "").body)
	b.do(t, "POST", "/v1/devices/d1/undrain", "").problem(t, 404)

	drained := b.made(t, task.DeviceDrained)
	require.Len(t, drained, 2)
	require.Equal(t, "ops", drained[0].ActorID)
	require.Equal(t, task.ActorUser, drained[0].ActorType)
	require.Contains(t, drained[0].SourceAddr, "127.0.0.1:")
	require.Equal(t, "d1", drained[0].DeviceID)
	require.JSONEq(t, `{"changed":true}`, string(drained[0].Detail))
	require.JSONEq(t, `{"changed":false}`, string(drained[1].Detail))
	require.Len(t, b.made(t, task.DeviceUndrained), 1)
	b.redis.Close()
	b.do(t, "POST", "/v1/devices/d1/drain", "").problem(t, 503)
}

func TestPolicy(t *testing.T) {
	b := start(t, Config{})
	var p PolicyStatus
	b.do(t, "GET", "/v1/router/policy", "").into(t, &p)
	require.Equal(t, PolicyStatus{PolicyIn: PolicyIn{Policy: "round_robin", Binding: "late"}, Source: "file",
		File: PolicyIn{Policy: "round_robin", Binding: "late"}, Policies: device.PolicyNames()}, p)

	for body, pointer := range map[string]string{
		`{}`:                                    "/policy",
		`{"policy":"best"}`:                     "/policy",
		`{"policy":7}`:                          "/policy",
		`{"policies":"fifo"}`:                   "/policies",
		`{"policy":"fifo","binding":"never"}`:   "/binding",
		`{"policy":"fifo","weights":{"cpu":1}}`: "/weights",
		`{"policy":"load_formula","weights":{"gpu":1}}`:          "/weights/gpu",
		`{"policy":"load_formula","weights":{"cpu":-1}}`:         "/weights/cpu",
		`{"policy":"load_formula","preset":"x"}`:                 "/preset",
		`{"policy":"load_formula","weights":{"cpu":"much"}}`:     "/weights",
		`{"policy":"load_formula","weights":{"cpu":1}} and more`: "",
		`{"policy":"fifo","policy":"hash"`:                       "",
	} {
		got := b.do(t, "PUT", "/v1/router/policy", body).problem(t, 422)
		if pointer != "" {
			require.Equal(t, pointer, got.Errors[0].Pointer, body)
		}
	}
	require.Empty(t, b.made(t, task.PolicyChanged))

	a := b.do(t, "PUT", "/v1/router/policy", `{"policy":"load_formula","weights":{"cpu":0.5,"mem":0.5}}`, tenantHeader, "ops", "User-Agent", "test/1")
	require.Equal(t, 200, a.status, a.body)
	a.into(t, &p)
	require.Equal(t, "load_formula", p.Policy)
	require.Equal(t, "operator", p.Source)
	require.Equal(t, "ops", p.By)
	require.WithinDuration(t, time.Now(), *p.At, time.Minute)
	require.Equal(t, "round_robin", p.File.Policy)
	var again PolicyStatus
	b.do(t, "GET", "/v1/router/policy", "").into(t, &again)
	require.True(t, p.At.Equal(*again.At))
	require.Equal(t, p.Weights, again.Weights)

	b.do(t, "PUT", "/v1/router/policy", `{"policy":"load_formula","weights":{"cpu":0.5,"mem":0.5}}`, tenantHeader, "ops2").into(t, &again)
	for range 2 {
		b.do(t, "DELETE", "/v1/router/policy", "").into(t, &again)
		require.Equal(t, "file", again.Source)
	}
	kept := b.events(t, task.PolicyKept)
	require.Len(t, kept, 2, "the policy was in force already")
	require.Equal(t, "ops2", kept[0].ActorID)
	require.JSONEq(t, fmt.Sprintf(`{"kept":{"policy":"load_formula","binding":"auto","weights":{"cpu":0.5,"mem":0.5},"source":"operator"},"set_by":"ops","set_at":%q}`,
		p.At.Format(time.RFC3339Nano)), string(kept[0].Detail))
	require.JSONEq(t, `{"kept":{"policy":"round_robin","binding":"late","source":"file"},"set_by":"","set_at":null}`, string(kept[1].Detail))
	changes := b.made(t, task.PolicyChanged)
	require.Len(t, changes, 2)
	require.Equal(t, "test/1", changes[0].UserAgent)
	require.Equal(t, "ops", changes[0].ActorID)
	require.JSONEq(t, `{"old":{"policy":"round_robin","binding":"late","source":"file"},
		"new":{"policy":"load_formula","binding":"auto","weights":{"cpu":0.5,"mem":0.5},"source":"operator"}}`, string(changes[0].Detail))
	require.JSONEq(t, `{"new":{"policy":"round_robin","binding":"late","source":"file"},
		"old":{"policy":"load_formula","binding":"auto","weights":{"cpu":0.5,"mem":0.5},"source":"operator"}}`, string(changes[1].Detail))
	b.redis.Close()
	for _, method := range []string{"GET", "DELETE"} {
		b.do(t, method, "/v1/router/policy", "").problem(t, 503)
	}
	b.do(t, "PUT", "/v1/router/policy", `{"policy":"fifo"}`).problem(t, 503)
}

func TestReprioritize(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "PATCH", "/v1/tasks/a", `{"priority":"high"}`).problem(t, 404)
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks", `{"task_id":"a","model":"m","level":3,"input":{"messages":[]}}`).status)
	for body, pointer := range map[string]string{
		`{}`:                    "",
		`{"priority":"urgent"}`: "/priority",
		`{"level":10}`:          "/level",
		`{"level":-1}`:          "/level",
		`{"level":"high"}`:      "/level",
		`{"model":"other"}`:     "/model",
		`["high"]`:              "",
	} {
		p := b.do(t, "PATCH", "/v1/tasks/a", body).problem(t, 422)
		require.Equal(t, pointer, p.Errors[0].Pointer, body)
	}
	var r Reprioritized
	a := b.do(t, "PATCH", "/v1/tasks/a", `{"priority":"high","level":7}`, "User-Agent", "test/1")
	require.Equal(t, 202, a.status, a.body)
	a.into(t, &r)
	require.Equal(t, Reprioritized{"a", "default", task.Pending, producer.PriorityLevel{Priority: task.Normal, Level: 3}, producer.PriorityLevel{Priority: task.High, Level: 7}}, r)
	a = b.do(t, "PATCH", "/v1/tasks/a", `{"level":0}`)
	a.into(t, &r)
	require.Equal(t, producer.PriorityLevel{Priority: task.High, Level: 7}, r.From, "of the change before")
	require.Equal(t, producer.PriorityLevel{Priority: task.High, Level: 0}, r.To)
	overrides, err := b.deps.Overrides.Get(t.Context(), task.Key{Tenant: "default", ID: "a"})
	require.NoError(t, err)
	require.Equal(t, task.High, overrides[0].Priority)
	require.Equal(t, 0, overrides[0].Level)
	es := b.made(t, task.TaskReprioritized)
	require.Len(t, es, 2)
	require.Equal(t, "a", es[0].TaskID)
	require.Equal(t, "test/1", es[0].UserAgent)
	require.Contains(t, es[0].SourceAddr, "127.0.0.1:")
	require.JSONEq(t, `{"from":{"priority":"normal","level":3},"to":{"priority":"high","level":7}}`, string(es[0].Detail))

	// When no process remembers the submit, the events explain it.
	b.store.set(status.TaskRow{Tenant: "default", ID: "old", State: task.Pending, Priority: task.Low})
	b.store.tell(task.Event{TaskID: "old", Action: task.TaskAccepted, Detail: []byte(`{"level":4}`)})
	b.do(t, "PATCH", "/v1/tasks/old", `{"priority":"normal"}`).into(t, &r)
	require.Equal(t, producer.PriorityLevel{Priority: task.Low, Level: 4}, r.From)

	for state, says := range map[task.State]string{task.Running: "already running on device d", task.Assigned: "already at device d", task.Success: "already finished as SUCCESS"} {
		b.store.set(status.TaskRow{Tenant: "default", ID: "b", State: state, Device: "d"})
		p := b.do(t, "PATCH", "/v1/tasks/b", `{"priority":"high"}`).problem(t, 409)
		require.Equal(t, state, p.State)
		require.Contains(t, p.Detail, says)
	}
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks/a/cancel", "").status)
	b.do(t, "PATCH", "/v1/tasks/a", `{"priority":"high"}`).problem(t, 409)
	b.redis.Close()
	b.do(t, "PATCH", "/v1/tasks/old", `{"priority":"high"}`).problem(t, 503)
	require.Len(t, b.made(t, task.TaskReprioritized), 3)
}

func whyOf(t *testing.T, b *bench, id string) (w Why) {
	t.Helper()
	a := b.do(t, "GET", "/v1/tasks/"+id+"/why", "")
	require.Equal(t, 200, a.status, a.body)
	a.into(t, &w)
	require.NotContains(t, w.Sentence, "%!")
	require.NotContains(t, w.Sentence, "..")
	return w
}

func TestWhyATaskWaits(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "GET", "/v1/tasks/none/why", "").problem(t, 404)
	require.Equal(t, 202, b.do(t, "POST", "/v1/tasks", `{"task_id":"a","model":"m","priority":"low","input":{"messages":[]}}`).status)
	w := whyOf(t, b, "a")
	require.False(t, w.Waiting.Read)
	require.Contains(t, w.Sentence, "no router has read it yet")
	require.Contains(t, w.Sentence, "no device is known")
	require.Contains(t, w.Sentence, "priority low and level 0")

	for id, beat := range map[string]string{
		"busy": aBeat, "other": `{"url":"http://h","models":["x"]}`, "tagless": `{"url":"http://h","models":["m"]}`,
		"draining": aBeat[:len(aBeat)-1] + `,"draining":true}`, "open": aBeat, "slow": aBeat, "bad": aBeat,
	} {
		require.Equal(t, 200, b.do(t, "POST", "/v1/devices/"+id+"/heartbeat", beat).status)
	}
	soon := time.Now().Add(time.Hour)
	rates := b.deps.Rates.(*store.Rates)
	require.NoError(t, rates.Report(t.Context(), nil, map[string]device.Health{
		"open": {State: "open", OpenUntil: soon, At: time.Now()}, "slow": {ThrottledUntil: soon, At: time.Now()},
	}))
	credits := b.deps.Credits.(*store.Credits)
	_, err := credits.Acquire(t.Context(), "test", []device.Want{{Pool: device.Pool("busy", device.ClassSingle), N: 5, Limit: 5}})
	require.NoError(t, err)
	at := time.Now().Add(-90 * time.Second).UTC().Truncate(time.Second)
	wishes := task.Constraints{Needs: []string{"gpu"}, Exclude: []string{"bad"}, Level: 2}
	b.store.set(status.TaskRow{Tenant: "default", ID: "w", State: task.Pending, Model: "m", Endpoint: task.EndpointChat, Priority: task.Normal, SubmittedAt: at})
	b.store.tell(task.Event{TaskID: "w", Action: task.TaskAccepted, Time: at, Detail: []byte(`{"needs":["gpu"]}`)},
		task.Event{TaskID: "w", Action: task.TaskQueued, Time: at, Detail: wishes.Detail()})
	w = whyOf(t, b, "w")
	require.Equal(t, map[string]int{"model": 1, "tags": 1, "draining": 1, "breaker_open": 1, "throttled": 1, "excluded": 1}, w.Waiting.Out)
	require.Equal(t, 7, w.Waiting.Devices)
	require.Equal(t, 1, w.Waiting.Able)
	require.Equal(t, 4, w.Waiting.Slots)
	require.Equal(t, 5, w.Waiting.Used)
	require.Equal(t, 2, w.Waiting.Level)
	require.Contains(t, w.Sentence, "1 of 7 devices could run it and is busy, with 5 tasks for 4 slots; of the others 1 does not serve its model, 1 lacks tags that it needs,")
	require.Regexp(t, "for [1-9]m[0-9.]+s", w.Sentence) // 90 s ago, and however long the test took
	lines := map[string]string{}
	for _, f := range w.Waiting.Fleet {
		lines[f.DeviceID] = f.Line
	}
	require.Equal(t, "busy", w.Waiting.Fleet[0].DeviceID, "what could run it comes first")
	require.Len(t, lines, 7)
	require.Equal(t, "busy (up) could run it; models m; tags gpu", lines["busy"])
	require.Equal(t, "other (up) does not serve m; models x", lines["other"])
	require.Equal(t, "tagless (up) lacks tags of gpu; models m", lines["tagless"])
	require.Equal(t, "draining (draining) is draining: its heartbeat says so; models m; tags gpu", lines["draining"])

	// Where requests are merged, tasks are not to be counted against slots; a
	// device that has room does not mean that the task is the next.
	b.store.set(status.TaskRow{Tenant: "default", ID: "e", State: task.Pending, Model: "x", Endpoint: task.EndpointEmbeddings, Priority: task.Normal})
	require.Contains(t, whyOf(t, b, "e").Sentence, "has 0 tasks for 1 slot, each of which takes many at once")
	b.store.set(status.TaskRow{Tenant: "default", ID: "f", State: task.Pending, Model: "x", Endpoint: task.EndpointChat, Priority: task.Normal})
	b.store.tell(task.Event{TaskID: "f", Action: task.TaskQueued, Time: at})
	require.Contains(t, whyOf(t, b, "f").Sentence, "1 of 7 devices could run it and has 0 tasks for 1 slot; of the others 6 do not serve its model; others are ahead of it, or a faster device is worth the wait.")

	// No device can run it; it is parked; it may not run yet; the deadline is mentioned.
	at2 := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	b.store.set(status.TaskRow{Tenant: "default", ID: "p", State: task.Pending, Model: "unserved", Priority: task.Normal, SubmittedAt: at, Deadline: at2})
	b.store.tell(task.Event{TaskID: "p", Action: task.TaskQueued, Time: at, Detail: task.Constraints{NotBefore: at2}.Detail()},
		task.Event{TaskID: "p", Action: task.TaskParked, Time: at, Detail: []byte(`{"reason":"no_device"}`)})
	w = whyOf(t, b, "p")
	require.Equal(t, "no_device", w.Waiting.Parked)
	require.Equal(t, 7, w.Waiting.Out["model"])
	require.True(t, at2.Equal(*w.Waiting.NotBefore))
	for _, says := range []string{"none of the 7 devices can run it: 7 do not serve its model unserved, but m, x", "may not run before " + at2.Format(time.RFC3339), "parked it", "Its deadline is " + at2.Format(time.RFC3339)} {
		require.Contains(t, w.Sentence, says)
	}
	b.store.set(status.TaskRow{Tenant: "default", ID: "near", State: task.Pending, Model: "M-instruct", Priority: task.Normal, SubmittedAt: at})
	beat := `{"url":"http://h","problem":"connection refused","models":["m:instruct"]}`
	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/off/heartbeat", beat).status)
	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/blank/heartbeat", `{"url":"http://h","problem":"no route to host"}`).status)
	b.do(t, "POST", "/v1/devices/bare/heartbeat", `{"url":"http://h"}`).problem(t, 422)
	w = whyOf(t, b, "near")
	require.Contains(t, w.Lines(), "blank (down) does not answer: no route to host; models not known")
	require.Equal(t, "m:instruct", w.Waiting.Nearest)
	require.Contains(t, w.Sentence, "(did you mean m:instruct?)")
	require.Contains(t, w.Lines(), "off (down) does not serve M-instruct: connection refused; models m:instruct")
	require.Equal(t, 202, b.do(t, "PATCH", "/v1/tasks/p", `{"priority":"high","level":9}`).status)
	require.Contains(t, whyOf(t, b, "p").Sentence, "priority high and level 9")
	b.redis.Close()
	b.do(t, "GET", "/v1/tasks/p/why", "").problem(t, 503)
}

func TestWhyATaskWentWhereItWent(t *testing.T) {
	b := start(t, Config{})
	at := time.Now().Add(-time.Minute)
	detail := `{"policy":"expected_finish","why":"it can start at once","of":3,"candidates":[{"device":"a","score":12.3,"unit":"ms","used":3,"slots":4,"limit":5,"service_ms":40.1},
		{"device":"c","score":15,"unit":"ms","used":0,"slots":1,"limit":2}],"out":{"model":2,"silent":1}}`
	assigned := func(id, device string, attempt int, detail string) task.Event {
		return task.Event{TaskID: id, Action: task.TaskAssigned, Time: at, Attempt: attempt, DeviceID: device, Duration: 5 * time.Millisecond, Detail: []byte(detail)}
	}
	b.store.tell(assigned("a", "a", 1, detail),
		task.Event{TaskID: "a", Action: task.AttemptFailed, Attempt: 1, DeviceID: "a", Outcome: task.OutcomeFailed, ErrorClass: task.ClassTimeout, Duration: time.Second},
		task.Event{TaskID: "a", Action: task.AttemptFailed, Attempt: 2, DeviceID: "a", Outcome: task.OutcomeFailed, ErrorClass: task.ClassTimeout, Duration: time.Second},
		assigned("a", "c", 3, `{"policy":"expected_finish","why":"best of a bad lot"}`),
		task.Event{TaskID: "a", Action: task.AttemptSucceeded, Attempt: 3, DeviceID: "c", Outcome: task.OutcomeOK, Duration: 41 * time.Millisecond})
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", State: task.Success, Device: "c", Attempt: 3})
	w := whyOf(t, b, "a")
	require.Nil(t, w.Waiting)
	require.Len(t, w.Attempts, 3)
	require.Equal(t, 3, w.Attempts[0].Of)
	require.InDelta(t, 12.3, *w.Attempts[0].Candidates[0].Score, 0)
	require.Equal(t, map[string]int{"model": 2, "silent": 1}, w.Attempts[0].Out)
	require.Equal(t, "It ran on c. Attempt 1 went to a by expected_finish, out of 3 devices that could run it, because it can start at once (12.3 ms, c 15 ms); "+
		"of the others 2 do not serve its model and 1 has missed its heartbeats; it failed after 1000 ms (timeout). "+
		"Attempt 2 went to a, because it was retried there; it failed after 1000 ms (timeout). "+
		"Attempt 3 went to c by expected_finish, because best of a bad lot; it was answered after 41 ms.", w.Sentence)

	b.store.set(status.TaskRow{Tenant: "default", ID: "e", State: task.Expired, ErrorClass: task.ClassExpired, ErrorMessage: "the deadline passed"})
	require.Equal(t, "The task ended as EXPIRED before it was assigned to a device: the deadline passed.", whyOf(t, b, "e").Sentence)
	b.store.set(status.TaskRow{Tenant: "default", ID: "r", State: task.Running, Device: "d"})
	require.Contains(t, whyOf(t, b, "r").Sentence, "not been recorded yet")
	for i := range 30 {
		b.store.tell(assigned("many", fmt.Sprint("d", i), i+1, "{}"))
	}
	b.store.set(status.TaskRow{Tenant: "default", ID: "many", State: task.Running, Device: "d29"})
	w = whyOf(t, b, "many")
	require.Contains(t, w.Sentence, "It runs on d29.")
	require.Contains(t, w.Sentence, "… 22 more. Attempt 30 went to d29.")
}

func FuzzDecodeSettings(f *testing.F) {
	f.Add([]byte(`{"policy":"load_formula","weights":{"cpu":1}}`))
	f.Add([]byte(`{"priority":"high","level":7}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzing.Bound(t, len(body), func() {
			_ = decodeObject(body, &PolicyIn{})
			_ = decodeObject(body, &PriorityIn{})
		})
		var p PolicyIn
		if decodeObject(body, &p) == nil {
			s := device.PolicySetting{Name: p.Policy, Binding: p.Binding, Weights: p.Weights, Preset: p.Preset}
			if s.Validate() == nil {
				require.Contains(t, device.PolicyNames(), p.Policy)
			}
		}
		var r PriorityIn
		if decodeObject(body, &r) == nil && r.check() == nil {
			require.True(t, r.Priority != "" || r.Level != nil)
			require.True(t, r.Level == nil || *r.Level >= 0 && *r.Level <= task.MaxLevel)
		}
	})
}

// A body is one object. What else JSON has is refused, also where every member is optional.
func TestABodyIsOneObject(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`null`, ` null `, "\ufeffnull", `[]`, `[{}]`, `"x"`, `1`, `true`, ``, ` `, `{}{}`} {
		for _, into := range []any{&RetryIn{}, &PriorityIn{}, &PolicyIn{}, &task.JobSpec{}} {
			require.Errorf(t, decodeObject([]byte(body), into), "%q as %T", body, into)
		}
	}
	require.NoError(t, decodeObject([]byte(" {}\n"), &RetryIn{}))
}

// While a task has not ended, people see why its last attempt failed: its row says so while it waits for a router, and the
// log otherwise.
func TestATaskShowsItsLastError(t *testing.T) {
	b := start(t, Config{})
	get := func(id string) (st Status) {
		a := b.do(t, "GET", "/v1/tasks/"+id, "")
		require.Equal(t, 200, a.status, a.body)
		a.into(t, &st)
		return st
	}
	b.store.set(status.TaskRow{Tenant: "default", ID: "waits", State: task.Pending, Attempt: 1, Model: "m", ErrorClass: task.ClassConnect, ErrorMessage: "device d cannot be reached"})
	require.Equal(t, &task.Error{Class: task.ClassConnect, Message: "device d cannot be reached"}, get("waits").LastError)
	require.Nil(t, get("waits").Error, "it has not failed yet")

	b.store.set(status.TaskRow{Tenant: "default", ID: "runs", State: task.Running, Attempt: 3, Model: "m"})
	b.store.tell(task.Event{TaskID: "runs", Action: task.AttemptFailed, Attempt: 1, ErrorClass: task.ClassTimeout, Detail: []byte(`{"message":"the first"}`)},
		task.Event{TaskID: "runs", Action: task.AttemptFailed, Attempt: 2, ErrorClass: task.ClassDevice, Detail: []byte(`{"message":"device d answered 500"}`)},
		task.Event{TaskID: "runs", Action: task.AttemptStarted, Attempt: 3})
	require.Equal(t, &task.Error{Class: task.ClassDevice, Message: "device d answered 500"}, get("runs").LastError)

	b.store.set(status.TaskRow{Tenant: "default", ID: "again", State: task.Running, Attempt: 1, Model: "m", Generation: 1})
	b.store.tell(task.Event{TaskID: "again", Action: task.AttemptFailed, Attempt: 1, ErrorClass: task.ClassTimeout}, task.Event{TaskID: "again", Action: task.TaskRetried})
	require.Nil(t, get("again").LastError, "that was another run")

	b.store.set(status.TaskRow{Tenant: "default", ID: "failed", State: task.Failed, Attempt: 1, Model: "m", ErrorClass: task.ClassTimeout, ErrorMessage: "it hung"})
	require.Equal(t, "it hung", get("failed").Error.Message)
	require.Nil(t, get("failed").LastError)
}
