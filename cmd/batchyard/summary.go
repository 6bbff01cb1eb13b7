package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// summary says how a job went.
type summary struct {
	Job      string             `json:"job_id"`
	Total    int                `json:"tasks"`
	ByState  map[task.State]int `json:"by_state"`
	ByDevice map[string]int     `json:"by_device,omitempty"`
	Missing  int                `json:"missing,omitempty"` // tasks without a result
	Output   string             `json:"output,omitempty"`
	Elapsed  time.Duration      `json:"-"`
	Seconds  float64            `json:"seconds"`
	Rate     float64            `json:"tasks_per_second"`
}

// finish computes the rate.
func (s *summary) finish() {
	s.Seconds = s.Elapsed.Seconds()
	ended := 0
	for _, n := range s.ByState {
		ended += n
	}
	if s.Seconds > 0 {
		s.Rate = float64(ended) / s.Seconds
	}
}

// print writes the summary as a table.
func (s *summary) print(w io.Writer) error {
	s.finish()
	t := cli.NewTable(w)
	t.Row("job", s.Job)
	t.Row("tasks", strconv.Itoa(s.Total))
	for _, state := range task.States {
		if n := s.ByState[state]; n > 0 {
			t.Row("  "+string(state), strconv.Itoa(n))
		}
	}
	if s.Missing > 0 {
		t.Row("  without a result", strconv.Itoa(s.Missing))
	}
	if len(s.ByDevice) > 0 {
		t.Row("devices", strconv.Itoa(len(s.ByDevice)))
		devices := make([]string, 0, len(s.ByDevice))
		for d := range s.ByDevice {
			devices = append(devices, d)
		}
		slices.Sort(devices)
		const most = 30
		for _, d := range devices[:min(len(devices), most)] {
			t.Row("  "+d, strconv.Itoa(s.ByDevice[d]))
		}
		if n := len(devices) - most; n > 0 {
			t.Row("  and more", strconv.Itoa(n))
		}
	}
	t.Row("time", s.Elapsed.Round(time.Millisecond).String())
	t.Row("rate", strconv.FormatFloat(s.Rate, 'f', 1, 64)+" tasks/s")
	if s.Output != "" {
		t.Row("results", s.Output)
	}
	return t.Flush()
}

// failed returns an error unless every task succeeded.
func (s *summary) failed() error {
	if n := s.Total - s.ByState[task.Success]; n > 0 {
		return cli.WithCode(cli.ExitFailed, fmt.Errorf("%d of %s of job %s did not succeed", n, cli.Counted(s.Total, "task"), s.Job))
	}
	return nil
}

// fileError gives an error from reading a job's file its exit code. Nothing was
// submitted: the mistake is in the file.
func fileError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return cli.WithCode(cli.ExitUsage, err)
}
