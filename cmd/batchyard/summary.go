package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// summary says how a job stands: run, submit and the commands of jobs show the same.
type summary struct {
	Job       string             `json:"job_id"`
	State     task.JobState      `json:"state,omitempty"`
	Total     int                `json:"tasks"`
	ByState   map[task.State]int `json:"by_state"`
	ByDevice  map[string]int     `json:"by_device,omitempty"`
	Missing   int                `json:"missing,omitempty"`       // tasks without a result
	ToSubmit  int                `json:"not_submitted,omitempty"` // tasks of the file that the server does not know yet
	Errors    []task.JobError    `json:"errors,omitempty"`
	Usage     task.Usage         `json:"usage"`
	BadLines  int                `json:"bad_lines,omitempty"` // of the file, which were skipped
	BadFile   string             `json:"bad_lines_file,omitempty"`
	Output    string             `json:"output,omitempty"`
	Elapsed   time.Duration      `json:"-"`
	Seconds   float64            `json:"seconds"`
	Rate      float64            `json:"tasks_per_second"`
	Remaining float64            `json:"remaining_seconds,omitempty"`
}

// summaryOf is the summary of a job as the server reports it.
func summaryOf(j *task.Job, now time.Time) *summary {
	s := &summary{Job: j.JobID, State: j.State, Total: int(j.Total), ByState: map[task.State]int{}, ByDevice: map[string]int{},
		BadLines: int(j.BadLines), Errors: j.Errors, Usage: j.Usage, Rate: j.Rate, Remaining: j.Seconds}
	for state, n := range j.Tasks {
		s.ByState[state] = int(n)
	}
	for device, n := range j.Devices {
		s.ByDevice[device] = int(n)
	}
	if !j.Ended() {
		s.ToSubmit = int(j.NotSubmitted())
	}
	if j.At != nil {
		end := now
		if j.Ended() && j.LastDone != nil {
			end = *j.LastDone
		}
		s.Elapsed = max(0, end.Sub(*j.At))
	}
	s.Seconds = s.Elapsed.Seconds()
	return s
}

// ofPlan adds what only the one who submitted the file knows, and the time that it took.
func (s *summary) ofPlan(plan *jobs.Plan, bad *jobs.BadLines, elapsed time.Duration) {
	s.Total, s.ToSubmit, s.Elapsed = plan.Tasks, 0, elapsed
	if s.BadLines = plan.Bad; plan.Bad > 0 {
		s.BadFile = bad.Path
	}
	ended := 0
	for state, n := range s.ByState {
		if state.Terminal() {
			ended += n
		}
	}
	if s.Seconds, s.Rate = elapsed.Seconds(), 0; s.Seconds > 0 {
		s.Rate = float64(ended) / s.Seconds
	}
}

// wrote replaces the server's counts by those of the results that were written: they are what the
// caller has.
func (s *summary) wrote(written jobs.Summary, output string) {
	s.ByState, s.ByDevice, s.Missing = written.ByState, written.ByDevice, written.Missing
	if output != "-" {
		s.Output = output
	}
}

// print writes the summary as a table.
func (s *summary) print(w io.Writer) error {
	t := cli.NewTable(w)
	t.Row("job", s.Job)
	if s.State != "" {
		t.Row("state", string(s.State))
	}
	t.Row("tasks", strconv.Itoa(s.Total))
	for _, state := range task.States {
		if n := s.ByState[state]; n > 0 {
			t.Row("  "+string(state), strconv.Itoa(n))
		}
	}
	if s.ToSubmit > 0 {
		t.Row("  not submitted", strconv.Itoa(s.ToSubmit)+": submit the file again to continue")
	}
	if s.Missing > 0 {
		t.Row("  without a result", strconv.Itoa(s.Missing))
	}
	if s.BadLines > 0 {
		t.Row("bad lines", badLinesRow(s.BadLines, s.BadFile))
	}
	if len(s.Errors) > 0 {
		t.Row("errors", strconv.Itoa(len(s.Errors)))
	}
	for _, e := range s.Errors {
		t.Row("  "+cmp.Or(string(e.Class), "without a class"), fmt.Sprintf("%d, such as: %s", e.Tasks, cmp.Or(cli.Short(e.Sample, 200), "no message")))
	}
	s.printDevices(t)
	if s.Usage != (task.Usage{}) {
		t.Row("tokens", fmt.Sprintf("%d in, %d out", s.Usage.InputTokens, s.Usage.OutputTokens))
	}
	t.Row("time", s.Elapsed.Round(time.Millisecond).String())
	t.Row("rate", strconv.FormatFloat(s.Rate, 'f', 1, 64)+" tasks/s")
	if s.Remaining > 0 {
		t.Row("remaining", "about "+seconds(s.Remaining).String())
	}
	if s.Output != "" {
		t.Row("results", s.Output)
	}
	return t.Flush()
}

// seconds is a duration that a server reported, in whole seconds.
func seconds(n float64) time.Duration {
	return time.Duration(min(n, math.MaxInt32)) * time.Second
}

func (s *summary) printDevices(t *cli.Table) {
	if len(s.ByDevice) == 0 {
		return
	}
	t.Row("devices", strconv.Itoa(len(s.ByDevice)))
	devices := slices.Sorted(maps.Keys(s.ByDevice))
	const most = 30
	for _, d := range devices[:min(len(devices), most)] {
		t.Row("  "+d, strconv.Itoa(s.ByDevice[d]))
	}
	if n := len(devices) - most; n > 0 {
		t.Row("  and more", strconv.Itoa(n))
	}
}

// failed returns an error unless every line of the file has an answer.
func (s *summary) failed() error {
	var errs []error
	ended := 0
	for _, n := range s.ByState {
		ended += n
	}
	if n := ended - s.ByState[task.Success]; n > 0 {
		errs = append(errs, fmt.Errorf("%d of %s of job %s did not succeed", n, cli.Counted(s.Total, "task"), s.Job))
	}
	if n := s.Total - ended; n > 0 {
		errs = append(errs, fmt.Errorf("%d of %s of job %s have no result", n, cli.Counted(s.Total, "task"), s.Job))
	}
	return cli.WithCode(cli.ExitFailed, errors.Join(append(errs, badLinesError(s.BadLines, s.BadFile))...))
}

func badLinesRow(n int, file string) string {
	text := strconv.Itoa(n) + ", not submitted"
	if file != "" {
		text += ": see " + file
	}
	return text
}

// badLinesError reports lines that were skipped. Only the one who submits them knows the file with the
// errors.
func badLinesError(n int, file string) error {
	if n == 0 {
		return nil
	}
	text := cli.Counted(n, "bad line") + " not submitted"
	if file != "" {
		text += ": " + file + " has the errors"
	}
	return cli.WithCode(cli.ExitFailed, errors.New(text))
}

// fileError gives an error from reading a job's file its exit code. Nothing was
// submitted: the mistake is in the file.
func fileError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return cli.WithCode(cli.ExitInterrupted, err)
	case errors.Is(err, context.DeadlineExceeded):
		return cli.WithCode(cli.ExitFailed, err)
	}
	return cli.WithCode(cli.ExitUsage, err)
}
