package check

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/watch"
)

func run(id string) task.Run { return task.Run{Key: key(id)} }

func again(id string) task.Run { return task.Run{Key: key(id), Generation: 1} }

func key(id string) task.Key { return task.Key{Tenant: "alpha", ID: id} }

func out(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

// whole returns a history without violations. It has a task that succeeded, one that
// was cancelled, one that expired, two with an unknown submission of which one ran,
// one that was refused, one in an aborted transaction, and one that ran again after it
// had failed and under whose id another request became a dead letter.
func whole() *History {
	return &History{
		Submits: []Submit{
			{Key: key("done"), Outcome: Unknown, Callback: true}, {Key: key("done"), Outcome: Accepted, Callback: true},
			{Key: key("cancelled"), Outcome: Accepted, Cancel: true}, {Key: key("late"), Outcome: Accepted, Deadline: true},
			{Key: key("ran"), Outcome: Unknown}, {Key: key("never"), Outcome: Unknown, Callback: true}, {Key: key("refused"), Outcome: Refused},
			{Key: key("aborted"), Outcome: Aborted},
			{Key: key("again"), Outcome: Accepted, Print: task.Fingerprint{1}, Callback: true}, {Key: key("again"), Outcome: Accepted, Print: task.Fingerprint{2}, Callback: true},
		},
		Retries: []Retry{{again("again"), Accepted}, {again("again"), Accepted}, {run("again"), Unknown}, {run("done"), Refused}},
		Reused:  []Reused{{key("again"), task.Fingerprint{2}}},
		Queued:  []Queued{{run("again"), task.Fingerprint{1}, time.Unix(5, 0), false}, {run("again"), task.Fingerprint{1}, time.Unix(60, 0), true}, {again("again"), task.Fingerprint{1}, time.Unix(60, 0), false}},
		Seen:    []Seen{{key("done"), task.Pending}, {key("done"), task.Success}, {key("never"), task.Pending}},
		Tasks: []Row{{Run: run("done"), State: task.Success}, {Run: run("cancelled"), State: task.Cancelled},
			{Run: run("late"), State: task.Expired}, {Run: run("ran"), State: task.Failed}, {Run: again("again"), State: task.Success, Print: task.Fingerprint{1}}},
		Results: []Row{{Run: run("done"), State: task.Success, Output: out("a")}, {Run: run("cancelled"), State: task.Cancelled, Output: out("")},
			{Run: run("late"), State: task.Expired, Output: out("")}, {Run: run("ran"), State: task.Failed, Output: out("")},
			{Run: run("again"), State: task.Failed, Output: out("")}, {Run: again("again"), State: task.Success, Output: out("")}},
		Topic: []Row{{Run: run("done"), State: task.Success, Output: out("a")}, {Run: run("done"), State: task.Success, Output: out("b")}, {Run: run("cancelled"), State: task.Cancelled, Output: out("")},
			{Run: run("late"), State: task.Expired, Output: out("")}, {Run: run("ran"), State: task.Failed, Output: out("")},
			{Run: run("again"), State: task.Failed, Output: out("")}, {Run: again("again"), State: task.Success, Output: out("")}},
		Changes: []Change{
			{Table: "tasks", Run: run("done"), Op: "INSERT", To: task.Pending}, {Table: "tasks", Run: run("done"), Op: "UPDATE", From: task.Pending, To: task.Success},
			{Table: "results", Run: run("done"), Op: "INSERT", To: task.Success},
			{Table: "results", Run: run("again"), Op: "INSERT", To: task.Failed, At: time.Unix(1, 0)}, {Table: "results", Run: again("again"), Op: "INSERT", To: task.Success, At: time.Unix(70, 0)},
			{Table: "tasks", Run: again("again"), Op: "UPDATE", From: task.Failed, To: task.Pending, Again: true},
		},
		Callbacks: []Due{{"msg_1", run("done"), "DELIVERED"}, {"msg_5", run("again"), "DELIVERED"}, {"msg_6", again("again"), "DELIVERED"}},
		Deliveries: []Delivery{{"msg_1", run("done"), task.Success, 500, ""}, {"msg_1", run("done"), task.Success, 204, ""}, {"msg_1", run("done"), task.Success, 204, ""},
			{"msg_5", run("again"), task.Failed, 204, ""}, {"msg_6", again("again"), task.Success, 204, ""}},
		Events:    []Event{{Place{0, 7, 0}, "task.accepted", key("done"), time.Time{}}, {Place{0, 7, 1}, "task.queued", key("done"), time.Time{}}, {Place{1, 7, 0}, "task.accepted", key("ran"), time.Time{}}},
		Rows:      []Event{{Place{1, 7, 0}, "task.accepted", key("ran"), time.Time{}}, {Place{0, 7, 0}, "task.accepted", key("done"), time.Time{}}, {Place{0, 7, 1}, "task.queued", key("done"), time.Time{}}},
		Poisons:   []Poison{{"tasks.normal", 1, 4}},
		Dead:      []Poison{{"tasks.normal", 1, 4}, {"tasks.normal", 1, 4}, {"tasks.low", 0, 1}},
		Commands:  []Command{{Args: "ledger check"}, {Args: "audit verify", Judged: true}},
		Processes: []Process{{Name: "api-a", Goroutines: [2]int{50, 50 + Slack}, Descriptors: [2]int{20, 10}}},
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
		h.Tasks = append(h.Tasks, Row{Run: run("stuck"), State: task.Running})
	}},
	NoResult: {
		func(h *History) {
			h.Submits = append(h.Submits, Submit{Key: key("x"), Outcome: Accepted})
			h.Tasks = append(h.Tasks, Row{Run: run("x"), State: task.Failed})
		},
		func(h *History) {
			h.Results = slices.Delete(h.Results, 4, 5)
			h.Topic = slices.Delete(h.Topic, 5, 6)
			h.Callbacks = slices.Delete(h.Callbacks, 1, 2)
			h.Deliveries = slices.Delete(h.Deliveries, 3, 4)
		},
		func(h *History) {
			h.Topic = append(h.Topic, Row{Run: run("never"), State: task.Success, Output: out("")})
		},
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
			h.Tasks = append(h.Tasks, Row{Run: run("ghost"), State: task.Success})
			h.Changes = append(h.Changes, Change{Table: "tasks", Run: run("ghost"), Op: "INSERT", To: task.Success})
		},
		func(h *History) { h.Callbacks = append(h.Callbacks, Due{"msg_9", run("cancelled"), "DUE"}) },
	},
	RefusedButPresent: {func(h *History) {
		h.Tasks = append(h.Tasks, Row{Run: run("refused"), State: task.Success})
		h.Results = append(h.Results, Row{Run: run("refused"), State: task.Success, Output: out("")})
		h.Topic = append(h.Topic, Row{Run: run("refused"), State: task.Success, Output: out("")})
	}},
	AbortedRan: {func(h *History) {
		h.Tasks = append(h.Tasks, Row{Run: run("aborted"), State: task.Success})
		h.Results = append(h.Results, Row{Run: run("aborted"), State: task.Success})
		h.Topic = append(h.Topic, Row{Run: run("aborted"), State: task.Success})
	}},
	WrongQuestion: {func(h *History) {
		h.Tasks[4].Print, h.Reused = task.Fingerprint{3}, append(h.Reused, Reused{key("again"), task.Fingerprint{1}})
	}},
	WrongAnswer:    {func(h *History) { h.Results[4].Print = task.Fingerprint{2} }},
	ReuseUnnoticed: {func(h *History) { h.Reused = nil }, func(h *History) { h.Reused[0].Print = task.Fingerprint{9} }},
	RetryLost: {func(h *History) {
		h.Retries = append(h.Retries, Retry{task.Run{Key: key("again"), Generation: 2}, Accepted})
	}},
	RetryInvented: {func(h *History) { h.Retries = h.Retries[3:] }},
	RanAgain:      {func(h *History) { h.Queued[1].Unchecked = false }},
	LeftTerminal: {
		func(h *History) {
			h.Changes = append(h.Changes, Change{Table: "tasks", Run: run("done"), Op: "UPDATE", From: task.Success, To: task.Running})
		},
		func(h *History) {
			h.Changes = append(h.Changes, Change{Table: "results", Run: run("done"), Op: "UPDATE", To: task.Success})
		},
		func(h *History) {
			h.Changes = append(h.Changes, Change{Table: "tasks", Run: run("done"), Op: "DELETE", From: task.Success})
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
			h.Deliveries = append(h.Deliveries, Delivery{"msg_3", run("ran"), task.Failed, 204, ""})
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
	CommandFailed: {func(h *History) { h.Commands[0].Code = 1 }, func(h *History) { h.Commands[1].Code = 1 }},
	StoodStill:    {func(h *History) { h.Stalls = []watch.Stall{{Kind: "reader", Name: "batches/0"}} }},
	HoleInvented: {func(h *History) {
		hole := Hole{"events", 0, 100, 107}
		h.Holes = []Hole{hole}
		h.Commands[1].Code, h.Commands[1].Findings = 1, []Finding{{Hole: &hole}}
	}},
	HoleUnnamed: {func(h *History) { h.Removed = []Removal{{Hole{"events", 0, 100, 107}, true}} }},
	Ungranted: {func(h *History) {
		h.Absences = []Absence{{"audit", time.Unix(0, 0), time.Unix(1000, 0)}, {"workers", time.Unix(100, 0), time.Unix(150, 0)}}
		for _, s := range []int64{99, 119, 121, 151} {
			h.Records = append(h.Records, Carried{Topic: "assignments", Offset: s, At: time.Unix(s, 0), Runs: []task.Run{run("done")}})
		}
	}},
	ParkedTooOften: {func(h *History) {
		h.ParkEvery = 10 * time.Second
		for s := range int64(16) {
			h.Records = append(h.Records, Carried{Topic: "tasks.parked", Offset: s, At: time.Unix(100+6*s, 0), Runs: []task.Run{run("done")}})
		}
	}},
	LostInvented: {func(h *History) { h.Reruns = []task.Run{run("done")} }},
	ExitCode:     {func(h *History) { h.Processes[0].Exit = 3 }},
	Crash:        {func(h *History) { h.Processes[0].Crash = "it panicked" }},
	Leak: {
		func(h *History) { h.Processes[0].Goroutines[1]++ },
		func(h *History) { h.Processes[0].Descriptors[1] = 100 },
	},
	LeftBehind: {func(h *History) { h.Left = []string{"credits: used of device-1/single is 2"} }},
}

// withHoles returns a history without violations in which Kafka deleted two results and an event before they
// were recorded: one task ran again, one ended as lost, and of one nothing is known.
func withHoles() *History {
	h := whole()
	hole, events := Hole{"results", 1, 10, 12}, Hole{"events", 2, 5, 5}
	h.Holes = []Hole{hole, events}
	h.Removed = []Removal{{Hole{"results", 1, 8, 12}, false}, {events, true}}
	for _, id := range []string{"rerun", "lost", "vanished"} {
		h.Submits = append(h.Submits, Submit{Key: key(id), Outcome: Accepted})
	}
	h.Records = []Carried{{Topic: "results", Partition: 1, Offset: 10, Runs: []task.Run{run("rerun")}}, {Topic: "results", Partition: 1, Offset: 11, Runs: []task.Run{run("lost")}}, {Topic: "results", Partition: 1, Offset: 12, Runs: []task.Run{run("vanished")}}, {Topic: "tasks.normal", Partition: 0, Offset: 3, Runs: []task.Run{run("vanished")}},
		{Topic: "results", Partition: 1, Offset: 20, Runs: []task.Run{run("rerun")}}, {Topic: "results", Partition: 1, Offset: 21, Runs: []task.Run{run("lost")}}}
	h.Events = append(h.Events, Event{Place{2, 5, 0}, "task.accepted", key("vanished"), time.Time{}})
	h.Rows = append(h.Rows, Event{Place{2, 5, 0}, string(task.RecordsMissed), task.Key{}, time.Time{}})
	h.Tasks = append(h.Tasks, Row{Run: run("rerun"), State: task.Success}, Row{Run: run("lost"), State: task.Failed})
	h.Results = append(h.Results, Row{Run: run("rerun"), State: task.Success, Output: out("r")}, Row{Run: run("lost"), State: task.Failed, Output: out(""), Lost: true})
	h.Topic = append(h.Topic, Row{Run: run("rerun"), State: task.Success, Output: out("r"), Partition: 1, Offset: 20}, Row{Run: run("lost"), State: task.Failed, Output: out(""), Partition: 1, Offset: 21},
		Row{Run: run("vanished"), State: task.Success, Partition: 1, Offset: 12})
	h.Reruns = []task.Run{run("rerun")}
	h.Stalls = []watch.Stall{{Kind: "task", Key: key("vanished")}}
	for i := range h.Commands {
		h.Commands[i].Judged, h.Commands[i].Code, h.Commands[i].Findings = true, 1, []Finding{{Hole: &hole}, {Hole: &events}}
	}
	return h
}

func TestCheckAcceptsHolesThatAreNamed(t *testing.T) {
	t.Parallel()
	h := withHoles()
	require.Empty(t, Check(h))
	require.Equal(t, 1, h.Gone)
	h.Reruns, h.Records = append(h.Reruns, run("done")), append(h.Records, Carried{Topic: "batches", Partition: 1, Offset: 7, Runs: []task.Run{run("done")}})
	h.Announced = []Announced{{Place{2, 5, 1}, Hole{"batches", 1, 7, 7}}}
	require.Empty(t, Check(h), "the event of a hole was in a hole")
	h.Poisons = append(h.Poisons, Poison{"results", 1, 11})
	require.Empty(t, Check(h), "no stage read it")
	require.Equal(t, map[task.Key]bool{key("vanished"): true}, Vanished(h))
}

// A cancel ends whatever was asked under an id, and says so: then there need be no dead letter.
func TestACancelMayEndAnotherRequest(t *testing.T) {
	t.Parallel()
	h := whole()
	h.Reused, h.Cancelled = nil, h.Reused
	require.Empty(t, Check(h))
}

// A task that was in a hole stands still until it is submitted again.
func TestATaskThatIsSubmittedAgainAfterAHole(t *testing.T) {
	t.Parallel()
	h := withHoles()
	then := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range h.Records {
		h.Records[i].At = then
	}
	h.Records[4].At = then.Add(5 * time.Minute) // its second result
	h.Stalls = []watch.Stall{{Kind: "unrecorded task", Key: key("rerun"), Since: then, Stood: 5 * time.Minute, Bound: time.Minute, Moved: true}}
	require.Empty(t, Check(h))
	h.Records = append(h.Records, Carried{Topic: "tasks.normal", Partition: 0, Offset: 80, At: then, Runs: []task.Run{run("rerun")}})
	h.Submits = append(h.Submits, Submit{Key: key("rerun"), Outcome: Accepted, At: then.Add(5*time.Minute - time.Second)})
	require.Empty(t, Check(h), "it moved when it was submitted again")
	h.Submits[len(h.Submits)-1].At = then.Add(time.Minute)
	require.NotEmpty(t, Check(h), "it was there again, and stood still")
	h.Submits = h.Submits[:len(h.Submits)-1]
	h.Events = append(h.Events, Event{Place{0, 90, 0}, "task.queued", key("rerun"), then})
	h.Rows = append(h.Rows, h.Events[len(h.Events)-1])
	require.NotEmpty(t, Check(h), "Postgres could know it")
}

// TestCheckAcceptsOnlyWhatWasInAHole: what a hole explains is a violation without it.
func TestCheckAcceptsOnlyWhatWasInAHole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind string
		way  func(h *History)
	}{
		{Lost, func(h *History) {
			h.Records = append(h.Records, Carried{Topic: "results", Partition: 1, Offset: 13, Runs: []task.Run{run("vanished")}})
		}},
		{Lost, func(h *History) { h.Submits = append(h.Submits, Submit{Key: key("elsewhere"), Outcome: Accepted}) }},
		{LostInvented, func(h *History) { h.Reruns = append(h.Reruns, run("done")) }},
		{LostInvented, func(h *History) { h.Results[0].Lost = true }},
		{HoleInvented, func(h *History) { h.Removed[0].Last = 11 }},
		{HoleInvented, func(h *History) {
			h.Commands[0].Findings = append(h.Commands[0].Findings, Finding{Hole: &Hole{"events", 0, 1, 2}})
		}},
		{HoleUnnamed, func(h *History) { h.Removed = append(h.Removed, Removal{Hole{"batches", 0, 1, 4}, true}) }},
		{HoleUnnamed, func(h *History) { h.Commands[0].Findings = h.Commands[0].Findings[1:] }},
		{CommandFailed, func(h *History) {
			h.Commands[0].Findings = append(h.Commands[0].Findings, Finding{Text: "a row is missing"})
		}},
		{CommandFailed, func(h *History) { h.Commands[0].Code = 0 }},
		{NoResult, func(h *History) {
			h.Topic = append(h.Topic, Row{Run: run("vanished"), State: task.Success, Partition: 1, Offset: 13})
		}},
		{LostInvented, func(h *History) {
			h.Reruns, h.Records = append(h.Reruns, run("done")), append(h.Records, Carried{Topic: "batches", Partition: 1, Offset: 7, Runs: []task.Run{run("done")}})
			h.Announced = []Announced{{Place{2, 6, 0}, Hole{"batches", 1, 7, 7}}} // but not in the log
		}},
		{EventMissing, func(h *History) {
			h.Events = append(h.Events, Event{Place{2, 6, 0}, "task.queued", key("done"), time.Time{}})
		}},
		{EventInvented, func(h *History) {
			h.Rows = append(h.Rows, Event{Place{2, 6, 0}, string(task.RecordsMissed), task.Key{}, time.Time{}})
		}},
		{StoodStill, func(h *History) { h.Stalls = append(h.Stalls, watch.Stall{Kind: "task", Key: key("lost")}) }},
	} {
		h := withHoles()
		c.way(h)
		found := Check(h)
		require.NotEmptyf(t, found, "%s", c.kind)
		require.Equalf(t, c.kind, found[0].Kind, "%v", found)
	}
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
