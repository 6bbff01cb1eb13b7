package chaos

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/hooks"
)

// What stands from the beginning of a run on, and must not hold up anything else: tasks of a model that no
// device serves until all else is done, more than the routers hold in memory, and in a soak, callbacks to hosts that
// do not answer in the first fifth, more than there are slots for. A host that has been silent for a while is tried
// again after as long at most, so these callbacks have until the last third before they stand still.
const (
	standingTenant = "standing"
	standingModel  = "late-model"
	standingDevice = "device-late" // sends heartbeats from the end on
	standingTasks  = 600
	standingWindow = 128 // router.max_pending_tasks

	silentTenant    = "silent"
	silentHosts     = 16
	silentCallbacks = 1500
	silentSlots     = 16 // callbacks.concurrency
)

// The needs of what stands.
const (
	needLateDevice = "the late device"
	needAnswers    = "answers to callbacks"
)

// stands returns what a task, or its callback, needs beyond what all need.
func stands(k task.Key) (needs []string) {
	switch k.Tenant {
	case standingTenant:
		return []string{needLateDevice}
	case silentTenant:
		return []string{needAnswers}
	}
	return nil
}

// lateDevice serves what has waited.
func lateDevice() fleet.Spec {
	s := specs()[0]
	s.ID, s.Models, s.Slots = standingDevice, []string{standingModel}, 16
	return s
}

// stand submits what is to stand until the returned function is called.
func (l *load) stand(r *hooks.Receiver) (end func()) {
	giveDevice := l.w.lacking.add(needLateDevice)
	callbacks := 0
	if l.w.profile.silentHosts {
		callbacks = silentCallbacks
		giveAnswers := l.w.lacking.add(needAnswers)
		time.AfterFunc(l.w.profile.length/5, r.Answer)
		time.AfterFunc(l.w.profile.length*2/3, giveAnswers)
	}
	l.w.standing = standingTenant
	var all []*task.Task
	for n := range callbacks + standingTasks {
		t := &task.Task{ID: fmt.Sprintf("%s%06d", l.prefix, n), Tenant: standingTenant, Model: standingModel, Priority: task.Normal, Endpoint: task.EndpointChat}
		if n < callbacks {
			t.Tenant, t.Model = silentTenant, model
			t.Callback = &task.Callback{URL: r.SilentURL(n, t.Key())}
		}
		text, _ := json.Marshal("say " + t.Tenant + " " + t.ID) //nolint:errchkjson // a string
		t.Input = task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":%s}]}`, text))
		all = append(all, t)
	}
	for at := 0; at < len(all); at += 100 {
		l.post(at/100%len(Lanes), all[at:min(at+100, len(all))], check.Accepted)
	}
	return func() {
		l.w.standing = ""
		l.w.silent.Delete(standingDevice)
		giveDevice()
	}
}
