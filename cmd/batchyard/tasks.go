package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// pageSize is how many tasks are asked for in one request.
const pageSize = 500

func tasksCommand(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "tasks", Short: "Show tasks, cancel them, run them again, or change their priority",
		Example: "  batchyard tasks list --state FAILED\n  batchyard tasks get 0199f3c1-… --events",
	}, tasksGetCommand(c), tasksListCommand(c), tasksCancelCommand(c), tasksRetryCommand(c), tasksSetPriorityCommand(c), tasksWhyCommand(c))
}

func tasksGetCommand(c *cli.Env) *cobra.Command {
	var wait time.Duration
	var events bool
	cmd := &cobra.Command{
		Use: "get ID", Short: "Show a task, and its result once it has one",
		Long: `Shows a task, and its result once it has one.

With --wait, waits until it ends first; the exit code is then 0 if it succeeded, and
1 if it did not or is still running.`,
		Example: `  batchyard tasks get my-task-1
  batchyard tasks get my-task-1 --wait 30s --json
  batchyard tasks get my-task-1 --events`,
		Args: cli.Exactly("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < 0 {
				return cli.UsageError("--wait must not be negative")
			}
			return tasksGet(cmd.Context(), c, args[0], shown{wait, events})
		},
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until it ends, at most this long")
	cmd.Flags().BoolVar(&events, "events", false, "show what happened to it, in order")
	return cmd
}

// shown is what `tasks get` waits for and shows.
type shown struct {
	wait   time.Duration // for the task to finish
	events bool          // the task's history, too
}

func tasksGet(ctx context.Context, c *cli.Env, id string, o shown) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	st, err := awaitTask(ctx, server, id, o.wait)
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	var history []batchyard.Event
	if o.events {
		if history, err = server.Events(ctx, id); err != nil {
			return err
		}
	}
	switch {
	case c.JSON && o.events:
		err = c.PrintJSON(struct {
			Task   json.RawMessage   `json:"task"`
			Events []json.RawMessage `json:"events"`
		}{st.RawJSON(), rawEvents(history)})
	case c.JSON:
		err = c.PrintJSON(st.RawJSON())
	default:
		err = showTask(c, st)
		if err == nil && o.events {
			err = showEvents(c, history)
		}
	}
	if err == nil && o.wait > 0 && st.State != task.Success {
		err = cli.WithCode(cli.ExitFailed, fmt.Errorf("task %s is %s%s", id, st.State, reasonOf(st.Error)))
	}
	return err
}

func reasonOf(e *task.Error) string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf(": %s: %s", e.Class, cli.Short(e.Message, 300))
}

// awaitTask waits until a task ends, but at most so long, and returns its state.
func awaitTask(ctx context.Context, server *server, id string, wait time.Duration) (*batchyard.TaskStatus, error) {
	if wait > 0 {
		limited, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		st, err := server.Wait(limited, id)
		if limited.Err() == nil || ctx.Err() != nil || err == nil {
			return st, err
		}
	}
	return server.Get(ctx, id)
}

func rawEvents(events []batchyard.Event) []json.RawMessage {
	raw := make([]json.RawMessage, len(events))
	for i := range events {
		raw[i] = events[i].RawJSON()
	}
	return raw
}

// showTask prints a task as a table.
func showTask(c *cli.Env, s *batchyard.TaskStatus) error {
	now := c.Now()
	t := cli.NewTable(c.Out)
	field := func(name, value string) {
		if value != "" {
			t.Row(name, value)
		}
	}
	field("id", s.TaskID)
	field("tenant", s.Tenant)
	field("state", string(s.State))
	field("model", s.Model)
	field("asked for", s.Requested)
	field("endpoint", s.Endpoint)
	field("priority", string(s.Priority))
	field("job", s.JobID)
	field("custom id", s.CustomID)
	field("device", s.DeviceID)
	if s.Attempt > 0 {
		field("attempt", strconv.Itoa(s.Attempt))
	}
	for _, at := range []struct {
		name string
		t    *time.Time
	}{{"submitted", s.SubmittedAt}, {"assigned", s.AssignedAt}, {"started", s.StartedAt}, {"finished", s.FinishedAt}, {"deadline", s.Deadline}} {
		if at.t != nil {
			field(at.name, cli.Ago(*at.t, now))
		}
	}
	if s.SubmittedAt != nil && s.FinishedAt != nil {
		field("took", s.FinishedAt.Sub(*s.SubmittedAt).Round(time.Millisecond).String())
	}
	if s.HTTPStatus != 0 {
		field("status", strconv.Itoa(s.HTTPStatus))
	}
	if s.Usage != nil {
		field("tokens", fmt.Sprintf("%d in, %d out", s.Usage.InputTokens, s.Usage.OutputTokens))
	}
	for _, a := range s.Attempts {
		how := fmt.Sprintf("%s on %s after %s", orWord(string(a.Class), "ok"), a.DeviceID, time.Duration(a.Duration)*time.Millisecond)
		if a.Message != "" {
			how += ": " + cli.Short(a.Message, 200)
		}
		field(fmt.Sprintf("  attempt %d", a.Number), how)
	}
	if s.Error != nil {
		field("error", string(s.Error.Class)+": "+s.Error.Message)
	}
	if s.LastError != nil {
		field("last error", string(s.LastError.Class)+": "+cli.Short(s.LastError.Message, 300))
	}
	field("trace", s.TraceID)
	if err := t.Flush(); err != nil {
		return err
	}
	if len(s.Output) == 0 {
		return nil
	}
	// JSON escapes control characters, so it is safe to print as it is.
	var out bytes.Buffer
	if err := json.Indent(&out, s.Output, "", "  "); err != nil {
		return fmt.Errorf("reading the output of task %s: %w", s.TaskID, err)
	}
	c.Printf("output\n%s\n", out.String())
	return nil
}

func orWord(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// showEvents prints a task's timeline; times count from its first event.
func showEvents(c *cli.Env, events []batchyard.Event) error {
	c.Printf("\n")
	t := cli.NewTable(c.Out, "AFTER", "ACTION", "OUTCOME", "ATTEMPT", "DEVICE", "TOOK", "WHO", "DETAIL")
	for i := range events {
		e := &events[i]
		attempt, took := "", ""
		if e.Attempt > 0 {
			attempt = strconv.Itoa(e.Attempt)
		}
		if e.DurationMS > 0 {
			took = time.Duration(e.DurationMS * float64(time.Millisecond)).Round(time.Microsecond).String()
		}
		outcome := string(e.Outcome)
		if e.ErrorClass != "" {
			outcome += " (" + string(e.ErrorClass) + ")"
		}
		t.Row(e.Time.Sub(events[0].Time).Round(100*time.Microsecond).String(), string(e.Action), outcome, attempt, e.DeviceID, took,
			strings.TrimSpace(string(e.ActorType)+" "+e.ActorID), cli.Short(string(e.Detail), 80))
	}
	return t.Flush()
}

type listFlags struct {
	state, job string
	limit      int
	all        bool
}

func tasksListCommand(c *cli.Env) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List tasks, newest first; those of one job by id, in descending order",
		Example: `  batchyard tasks list
  batchyard tasks list --state FAILED --limit 20
  batchyard tasks list --job nightly --all --json | jq -r .task_id`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.all && cmd.Flags().Changed("limit") {
				return cli.ErrLimitAll
			}
			return tasksList(cmd.Context(), c, f)
		},
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().StringVar(&f.state, "state", "", "only tasks in this `state`: "+strings.Join(stateNames(), ", "))
	cmd.Flags().StringVar(&f.job, "job", "", "only tasks of this `job`")
	cmd.Flags().IntVar(&f.limit, "limit", 50, "how many tasks at most")
	cmd.Flags().BoolVar(&f.all, "all", false, "all tasks")
	cli.CompleteFlag(cmd, "state", stateNames())
	return cmd
}

func tasksList(ctx context.Context, c *cli.Env, f listFlags) error {
	filter := batchyard.Filter{JobID: f.job}
	if f.state != "" {
		var err error
		if filter.State, err = task.ParseState(f.state); err != nil {
			return cli.WithCode(cli.ExitUsage, fmt.Errorf("--%w", err))
		}
	}
	if f.limit < 1 {
		return cli.UsageError("--limit must be at least 1; --all lists everything")
	}
	server, err := connect(c)
	if err != nil {
		return err
	}
	return eachPage(c, listed{f.limit, f.all, pageSize}, func(limit int, cursor string, number int) (int, string, error) {
		filter.Limit, filter.Cursor = limit, cursor
		page, err := server.Page(ctx, filter)
		if err != nil {
			return 0, "", err
		}
		return len(page.Tasks), page.Next, showTasks(c, page.Tasks, number)
	})
}

// showTasks prints a page of tasks. The first has number 0, and the head of the table.
func showTasks(c *cli.Env, page []batchyard.TaskStatus, number int) error {
	if c.JSON {
		for i := range page {
			if err := c.PrintJSON(page[i].RawJSON()); err != nil {
				return err
			}
		}
		return nil
	}
	if number == 0 && len(page) == 0 {
		_, _ = fmt.Fprintln(c.Err, "no task matches")
		return nil
	}
	t := cli.NewTable(c.Out)
	if number == 0 {
		t.Row("ID", "STATE", "MODEL", "PRIORITY", "ATTEMPT", "DEVICE", "SUBMITTED", "FINISHED", "ERROR")
	}
	now := c.Now()
	for i := range page {
		s := &page[i]
		var submitted, finished, class string
		if s.SubmittedAt != nil {
			submitted = cli.Ago(*s.SubmittedAt, now)
		}
		if s.FinishedAt != nil {
			finished = cli.Ago(*s.FinishedAt, now)
		}
		if s.Error != nil {
			class = string(s.Error.Class)
		} else if s.LastError != nil {
			class = strings.TrimSuffix(fmt.Sprintf("last %s: %s", s.LastError.Class, cli.Short(s.LastError.Message, 100)), ": ")
		}
		t.Row(s.TaskID, string(s.State), s.Model, string(s.Priority), strconv.Itoa(s.Attempt), s.DeviceID, submitted, finished, class)
	}
	return t.Flush()
}

func tasksCancelCommand(c *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID…", Short: "Cancel tasks",
		Long: `Asks for tasks to be stopped, wherever they are. A task that has already ended
stays as it is; the exit code is then 1.`,
		Example: `  batchyard tasks cancel my-task-1 my-task-2
  batchyard tasks list --job nightly --state PENDING --all --json | jq -r .task_id | xargs batchyard tasks cancel`,
		Args: cli.AtLeastOne("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error { return tasksCancel(cmd.Context(), c, args) },
	}
	c.ClientFlags(cmd)
	c.JSONFlag(cmd)
	return cmd
}

// cancelled is what cancel prints as JSON for each task.
type cancelled struct {
	ID    string     `json:"task_id"`
	Asked bool       `json:"asked"` // it ends as CANCELLED, unless another result came first
	State task.State `json:"state,omitempty"`
	Error string     `json:"error,omitempty"`
}

func tasksCancel(ctx context.Context, c *cli.Env, ids []string) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		state, err := server.Cancel(ctx, id)
		out := cancelled{ID: id, Asked: err == nil, State: state}
		var answer *batchyard.Error
		switch {
		case err == nil:
		case refused(err) && errors.As(err, &answer):
			out.State, out.Error = answer.State, answer.Detail
			errs = append(errs, cli.WithCode(cli.CodeOf(err), fmt.Errorf("task %s: %w", id, err)))
		default:
			return errors.Join(append(errs, fmt.Errorf("cancelling task %s: %w", id, err))...) // the others would fail the same way
		}
		if c.JSON {
			if err := c.PrintJSON(out); err != nil {
				return err
			}
		} else if out.Asked {
			c.Printf("task %s (%s): asked to stop\n", cli.Plain(id), out.State)
		}
	}
	return errors.Join(errs...)
}
