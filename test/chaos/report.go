package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/watch"
)

// Summary is the result of a run, written to summary.json.
type Summary struct {
	Name       string                `json:"name"`
	Seed       uint64                `json:"seed"`
	Seconds    float64               `json:"seconds"`
	Took       float64               `json:"took_seconds"`
	Passed     bool                  `json:"passed"`
	Drain      float64               `json:"drain_seconds"`
	Faults     map[Kind]int          `json:"faults"`
	LeftOut    int64                 `json:"faults_left_out"`
	Submits    map[check.Outcome]int `json:"submits"`
	Tasks      map[check.Outcome]int `json:"tasks"` // by the most definite outcome that any client knows
	Traced     int                   `json:"unknown_that_ran"`
	States     map[string]int        `json:"states"`
	Duplicates int                   `json:"results_twice_on_the_topic"`
	Callbacks  int                   `json:"callbacks"`
	Deliveries int                   `json:"deliveries"`
	Events     int                   `json:"events"`
	Cancels    int                   `json:"cancels"`
	Retries    map[check.Outcome]int `json:"retries"`
	Aborted    int                   `json:"in_aborted_transactions"`
	Reused     int                   `json:"ids_used_for_another_request"`
	Unchecked  int                   `json:"queued_without_postgres"`
	Poisons    int                   `json:"records_that_are_no_task"`
	Missed     int                   `json:"not_sent"`
	Starts     int                   `json:"starts"`
	Refused    int                   `json:"starts_that_did_not_become_ready"`
	Holes      int                   `json:"holes"`
	Reruns     int                   `json:"lost_and_run_again"`
	Lost       int                   `json:"ended_as_lost"`
	Gone       int                   `json:"unknown_to_postgres"` // because all about them was in holes
	MostParked int                   `json:"most_often_parked"`   // how often one task was parked
	Still      map[string]float64    `json:"longest_standstill_seconds"`
	Stalls     []watch.Stall         `json:"stalls"`
	Violations []check.Violation     `json:"violations"`
	Dir        string                `json:"logs"`
}

func summarize(h *check.History, plan []Fault, l *load, w *world) *Summary {
	_, count := used(plan)
	s := &Summary{Faults: count, Submits: map[check.Outcome]int{}, Tasks: map[check.Outcome]int{}, States: map[string]int{}, Dir: w.dir, LeftOut: w.leftOut.Load(),
		Callbacks: len(h.Callbacks), Deliveries: len(h.Deliveries), Events: len(h.Events), Duplicates: len(h.Topic) - len(h.Results),
		Retries: map[check.Outcome]int{}, Reused: len(h.Reused),
		Holes: len(h.Holes), Reruns: len(h.Reruns), Gone: h.Gone, MostParked: h.MostParked, Stalls: h.Stalls, Still: map[string]float64{}, Cancels: len(l.cancels), Poisons: len(l.poisons), Missed: l.missed}
	for _, r := range h.Retries {
		s.Retries[r.Outcome]++
	}
	for _, r := range h.Results {
		if r.Lost {
			s.Lost++
		}
	}
	for _, q := range h.Queued {
		if q.Unchecked {
			s.Unchecked++
		}
	}
	best := map[task.Key]check.Outcome{}
	for _, x := range h.Submits {
		s.Submits[x.Outcome]++
		if x.Outcome == check.Aborted {
			s.Aborted++
			continue
		}
		if b := best[x.Key]; b == "" || x.Outcome == check.Accepted || b == check.Refused {
			best[x.Key] = x.Outcome
		}
	}
	for _, o := range best {
		s.Tasks[o]++
	}
	for _, t := range h.Tasks {
		s.States[string(t.State)]++
		if best[t.Run.Key] == check.Unknown {
			s.Traced++
		}
	}
	for _, p := range append(w.all(), w.gone...) {
		starts, refused := p.Starts()
		s.Starts, s.Refused = s.Starts+starts, s.Refused+refused
	}
	return s
}

// still notes for how long things of each kind stood still.
func (s *Summary) still(longest map[string]time.Duration) {
	for kind, d := range longest {
		s.Still[kind] = d.Seconds()
	}
}

func (s *Summary) String() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-22s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "\nseed %d, %.0f s of %s, %.0f s in total, drained in %.1f s\n", s.Seed, s.Seconds, s.Name, s.Took, s.Drain)
	var faults []string
	n := 0
	for _, k := range slices.Sorted(mapKeys(s.Faults)) {
		n += s.Faults[k]
		faults = append(faults, fmt.Sprintf("%s %d", k, s.Faults[k]))
	}
	row("faults", "%d, of which %d skipped: %s", n, s.LeftOut, strings.Join(faults, ", "))
	row("submissions", "%d accepted, %d refused, %d unknown, %d not sent", s.Submits[check.Accepted], s.Submits[check.Refused], s.Submits[check.Unknown], s.Missed)
	row("tasks", "%d accepted, %d refused, %d unknown, of which %d ran", s.Tasks[check.Accepted], s.Tasks[check.Refused], s.Tasks[check.Unknown], s.Traced)
	row("ended", "%d SUCCESS, %d FAILED, %d CANCELLED, %d EXPIRED; %d cancels requested", s.States["SUCCESS"], s.States["FAILED"], s.States["CANCELLED"], s.States["EXPIRED"], s.Cancels)
	row("retries", "%d accepted, %d refused, %d unknown", s.Retries[check.Accepted], s.Retries[check.Refused], s.Retries[check.Unknown])
	row("identity", "%d dead letters with a reused id, %d tasks in aborted transactions, %d read while Postgres was away", s.Reused, s.Aborted, s.Unchecked)
	row("results", "%d more in the topic than tasks", s.Duplicates)
	row("callbacks", "%d, in %d deliveries", s.Callbacks, s.Deliveries)
	row("audit log", "%d events", s.Events)
	row("invalid records", "%d", s.Poisons)
	row("holes", "%d; %d tasks ran again, %d ended as lost, %d are unknown to Postgres", s.Holes, s.Reruns, s.Lost, s.Gone)
	row("waiting", "the task that was parked most often was %d times", s.MostParked)
	var still []string
	for _, k := range slices.Sorted(mapKeys(s.Still)) {
		still = append(still, fmt.Sprintf("%s %.0f s", k, s.Still[k]))
	}
	row("longest standstill", "%s", strings.Join(still, ", "))
	row("processes", "%d starts, of which %d never became ready", s.Starts, s.Refused)
	row("logs", "%s", s.Dir)
	if len(s.Violations) == 0 {
		fmt.Fprintf(&b, "  every promise was kept\n")
		return b.String()
	}
	kinds := map[string]int{}
	for _, v := range s.Violations {
		kinds[v.Kind]++
	}
	fmt.Fprintf(&b, "  %d VIOLATIONS\n", len(s.Violations))
	for _, k := range slices.Sorted(mapKeys(kinds)) {
		row("  "+k, "%d", kinds[k])
	}
	return b.String()
}

func (s *Summary) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the summary: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "summary.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the summary: %w", err)
	}
	return nil
}

// explain lists violations, with the full trace of the first tasks that have one.
func (w *world) explain(found []check.Violation) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var b strings.Builder
	traced := map[task.Key]bool{}
	byKind := map[string]int{}
	for _, v := range found {
		if byKind[v.Kind]++; byKind[v.Kind] > 5 {
			continue
		}
		fmt.Fprintf(&b, "%s\n", v)
		if v.Key.ID != "" && !traced[v.Key] && len(traced) < 8 {
			traced[v.Key] = true
			b.WriteString(w.trace(ctx, v.Key))
		}
	}
	return b.String()
}
