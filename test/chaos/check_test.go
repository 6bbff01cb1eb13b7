package chaos

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

func key(id string) task.Key { return task.Key{Tenant: "alpha", ID: id} }

func out(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

// whole returns a history without violations. It has a task that succeeded, one that
// was cancelled, one that expired, two with an unknown submission of which one ran,
// and one that was refused.
func whole() *History {
	return &History{
		Submits: []Submit{
			{Key: key("done"), Outcome: Unknown, Callback: true}, {Key: key("done"), Outcome: Accepted, Callback: true},
			{Key: key("cancelled"), Outcome: Accepted, Cancel: true}, {Key: key("late"), Outcome: Accepted, Deadline: true},
			{Key: key("ran"), Outcome: Unknown}, {Key: key("never"), Outcome: Unknown, Callback: true}, {Key: key("refused"), Outcome: Refused},
		},
		Seen: []Seen{{key("done"), task.Pending}, {key("done"), task.Success}, {key("never"), task.Pending}},
		Tasks: []Row{{Key: key("done"), State: task.Success}, {Key: key("cancelled"), State: task.Cancelled},
			{Key: key("late"), State: task.Expired}, {Key: key("ran"), State: task.Failed}},
		Results: []Row{{key("done"), task.Success, out("a")}, {key("cancelled"), task.Cancelled, out("")},
			{key("late"), task.Expired, out("")}, {key("ran"), task.Failed, out("")}},
		Topic: []Row{{key("done"), task.Success, out("a")}, {key("done"), task.Success, out("b")}, {key("cancelled"), task.Cancelled, out("")},
			{key("late"), task.Expired, out("")}, {key("ran"), task.Failed, out("")}},
		Changes: []Change{
			{"tasks", key("done"), "INSERT", "", task.Pending}, {"tasks", key("done"), "UPDATE", task.Pending, task.Success},
			{"results", key("done"), "INSERT", "", task.Success},
		},
		Callbacks:  []Due{{"msg_1", key("done"), "DELIVERED"}},
		Deliveries: []Delivery{{"msg_1", key("done"), task.Success, 500, ""}, {"msg_1", key("done"), task.Success, 204, ""}, {"msg_1", key("done"), task.Success, 204, ""}},
		Events:     []Event{{Place{0, 7, 0}, "task.accepted", key("done")}, {Place{0, 7, 1}, "task.queued", key("done")}, {Place{1, 7, 0}, "task.accepted", key("ran")}},
		Rows:       []Event{{Place{1, 7, 0}, "task.accepted", key("ran")}, {Place{0, 7, 0}, "task.accepted", key("done")}, {Place{0, 7, 1}, "task.queued", key("done")}},
		Poisons:    []Poison{{"tasks.normal", 1, 4}},
		Dead:       []Poison{{"tasks.normal", 1, 4}, {"tasks.normal", 1, 4}, {"tasks.low", 0, 1}},
		Commands:   []Command{{"ledger check", 0, ""}},
		Processes:  []Process{{Name: "api-a", Goroutines: [2]int{50, 50 + Slack}, Descriptors: [2]int{20, 10}}},
	}
}

func TestCheckAcceptsWholeHistory(t *testing.T) {
	t.Parallel()
	require.Empty(t, Check(whole()))
}

// broken lists, for each kind of violation, ways to break a history that must lead to
// this violation and no other.
var broken = map[string][]func(h *History){
	NotDrained: {func(h *History) { h.Undrained = "3 tasks have not ended" }},
	Lost:       {func(h *History) { h.Submits = append(h.Submits, Submit{Key: key("gone"), Outcome: Accepted}) }},
	NotEnded: {func(h *History) {
		h.Submits = append(h.Submits, Submit{Key: key("stuck"), Outcome: Unknown})
		h.Tasks = append(h.Tasks, Row{Key: key("stuck"), State: task.Running})
	}},
	NoResult: {
		func(h *History) {
			h.Submits = append(h.Submits, Submit{Key: key("x"), Outcome: Accepted})
			h.Tasks = append(h.Tasks, Row{Key: key("x"), State: task.Failed})
		},
		func(h *History) { h.Topic = append(h.Topic, Row{key("never"), task.Success, out("")}) },
	},
	Disagree: {
		func(h *History) { h.Tasks[0].State = task.Failed },
		func(h *History) { h.Seen = append(h.Seen, Seen{key("done"), task.Failed}) },
		func(h *History) { h.Tasks = slices.Delete(h.Tasks, 3, 4) },
	},
	Duplicate: {
		func(h *History) { h.Tasks = append(h.Tasks, h.Tasks[0]) },
		func(h *History) { h.Results = append(h.Results, h.Results[0]) },
		func(h *History) { h.Callbacks = append(h.Callbacks, h.Callbacks[0]) },
	},
	NeverSubmitted: {
		func(h *History) {
			h.Tasks = append(h.Tasks, Row{Key: key("ghost"), State: task.Success})
			h.Changes = append(h.Changes, Change{"tasks", key("ghost"), "INSERT", "", task.Success})
		},
		func(h *History) { h.Callbacks = append(h.Callbacks, Due{"msg_9", key("cancelled"), "DUE"}) },
	},
	RefusedButPresent: {func(h *History) {
		h.Tasks = append(h.Tasks, Row{Key: key("refused"), State: task.Success})
		h.Results = append(h.Results, Row{key("refused"), task.Success, out("")})
		h.Topic = append(h.Topic, Row{key("refused"), task.Success, out("")})
	}},
	LeftTerminal: {
		func(h *History) {
			h.Changes = append(h.Changes, Change{"tasks", key("done"), "UPDATE", task.Success, task.Running})
		},
		func(h *History) {
			h.Changes = append(h.Changes, Change{"results", key("done"), "UPDATE", "", task.Success})
		},
		func(h *History) {
			h.Changes = append(h.Changes, Change{"tasks", key("done"), "DELETE", task.Success, ""})
		},
	},
	NotOnTopic: {
		func(h *History) { h.Topic = slices.Delete(h.Topic, 2, 3) },
		func(h *History) { h.Results[0].Output = out("c") },
	},
	UnexpectedExpiry:  {func(h *History) { h.Submits[3].Deadline = false }},
	UnrequestedCancel: {func(h *History) { h.Submits[2].Cancel = false }},
	NoCallback: {
		func(h *History) { h.Deliveries = h.Deliveries[:1] },
		func(h *History) { h.Deliveries, h.Callbacks = nil, nil },
		func(h *History) { h.Callbacks[0].State = "GIVEN_UP" },
	},
	BadCallback: {
		func(h *History) { h.Deliveries[1].ID = "msg_2" },
		func(h *History) { h.Deliveries[1].Problem = "invalid signature" },
		func(h *History) { h.Deliveries[2].State = task.Failed },
		func(h *History) {
			h.Deliveries = append(h.Deliveries, Delivery{"msg_3", key("ran"), task.Failed, 204, ""})
		},
	},
	EventMissing:   {func(h *History) { h.Rows = h.Rows[:2] }},
	EventDuplicate: {func(h *History) { h.Rows = append(h.Rows, h.Rows[0]) }},
	EventInvented:  {func(h *History) { h.Events = h.Events[:2] }},
	EventChanged: {
		func(h *History) { h.Rows[0].Action = "task.refused" },
		func(h *History) { h.Rows[0].Key = key("done") },
	},
	DeadMissing:   {func(h *History) { h.Dead = h.Dead[2:] }},
	CommandFailed: {func(h *History) { h.Commands[0].Code = 1 }},
	ExitCode:      {func(h *History) { h.Processes[0].Exit = 3 }},
	Crash:         {func(h *History) { h.Processes[0].Crash = "it panicked" }},
	Leak: {
		func(h *History) { h.Processes[0].Goroutines[1]++ },
		func(h *History) { h.Processes[0].Descriptors[1] = 100 },
	},
	LeftBehind: {func(h *History) { h.Left = []string{"credits: used of device-1/each is 2"} }},
}

func TestCheckFindsEachKindOfViolation(t *testing.T) {
	t.Parallel()
	for kind, ways := range broken {
		for i, way := range ways {
			h := whole()
			way(h)
			found := Check(h)
			require.NotEmptyf(t, found, "%s, way %d", kind, i)
			for _, v := range found {
				require.Equalf(t, kind, v.Kind, "%s, way %d: %v", kind, i, found)
			}
		}
	}
}
