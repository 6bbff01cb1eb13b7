package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// recordWait limits how long a command that is done waits until Kafka has its event.
const recordWait = 5 * time.Second

// Recorded makes a command write to the audit log that it was run, by which user, with which flags, and how it ended. It
// does so when the command is over, so a command that is killed leaves no row. Without Kafka, the command says
// that it left none, and its result stays.
func (c *Env) Recorded(cmd *cobra.Command, action task.Action, resource string) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		code := CodeOf(err)
		if code == ExitUsage || code == ExitUnreachable {
			return err // it did nothing
		}
		detail := map[string]any{"command": cmd.CommandPath(), "exit_code": code}
		if given := flagsOf(cmd.Flags()); len(given) > 0 {
			detail["flags"] = given
		}
		if len(args) > 0 {
			detail["args"] = clipAll(args)
		}
		if err != nil {
			detail["error"] = Short(err.Error(), maxNote)
		}
		e := task.Event{Action: action, Outcome: task.OutcomeOK, ResourceType: resource}
		if code != ExitOK {
			e.Outcome = task.OutcomeFailed
		}
		if failed := c.record(cmd.Context(), e, detail); failed != nil {
			_, _ = fmt.Fprintf(c.Err, "note: the audit log has no row for this command: %v\n", failed)
		}
		return err
	}
}

// Bounds of what an event repeats of a command line.
const (
	maxNote = 200
	maxArgs = 8
)

func clipAll(args []string) []string {
	out := make([]string, min(len(args), maxArgs))
	for i := range out {
		out[i] = Short(args[i], maxNote)
	}
	return out
}

// flagsOf returns the flags that were given, without those that may hold a password.
func flagsOf(flags *pflag.FlagSet) map[string]string {
	given := map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		if len(given) < 2*maxArgs && !slices.Contains([]string{"postgres", "server", "token"}, f.Name) {
			given[f.Name] = Short(f.Value.String(), maxNote)
		}
	})
	return given
}

// record writes an event of the user who runs the program.
func (c *Env) record(ctx context.Context, e task.Event, detail any) error {
	cfg, err := c.Config(nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWait)
	defer cancel()
	return recordIn(ctx, cfg, c.signed(e, detail))
}

func recordIn(ctx context.Context, cfg app.Config, e task.Event) (err error) {
	log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if err := log.CheckTopics(ctx); err != nil {
		return err
	}
	return WriteEvent(ctx, log, e)
}

// WriteEvent writes an event, and returns once all in-sync replicas have it.
func WriteEvent(ctx context.Context, log *stream.Client, e task.Event) error {
	acked := make(chan error, 1)
	outbox := log.NewOutbox("cli", 1, 1<<20)
	if err := outbox.Put(ctx, stream.Unit{Events: []task.Event{e}, Acked: func(err error) { acked <- err }}); err != nil {
		return errors.Join(err, outbox.Close(ctx))
	}
	err := outbox.Close(ctx)
	select {
	case failed := <-acked:
		return errors.Join(err, failed)
	default:
		return err
	}
}

// signed says who acted, from where, when, and with what.
func (c *Env) signed(e task.Event, detail any) task.Event {
	e.Time, e.Tenant, e.ActorType, e.ActorID, e.SourceAddr, e.UserAgent = c.Now().UTC(), task.DefaultTenant, task.ActorUser, UserName(), HostName(), "batchyard-cli/"+c.Version
	if b, err := json.Marshal(detail); err == nil && len(b) <= task.MaxDetail {
		e.Detail = b
	}
	return e
}

// UserName returns who runs the program, for the audit log.
func UserName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// HostName returns the name of this machine; empty if it has none.
func HostName() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	return h
}
