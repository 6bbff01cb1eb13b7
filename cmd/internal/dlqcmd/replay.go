package dlqcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// replayBytes and replayUnits bound what is on its way to Kafka at once.
const (
	replayUnits = 1000
	replayBytes = 32 << 20
)

// replayFlags are the flags of dlq replay.
type replayFlags struct {
	letterFilter
	all, dry bool
}

func replayCommand(c *cli.Env) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use: "replay [PARTITION@OFFSET…]", Short: "Write dead letters back to their topics",
		Long: `Writes the original bytes and headers of dead letters back to the topics that they
came from. Name them by position, or use --all or a filter.

A record that fails again becomes a new dead letter. Replaying twice is harmless: a
task that has already ended keeps its result.`,
		Example: `  batchyard dlq replay 3@42 3@43
  batchyard dlq replay --reason too_large --dry-run
  batchyard dlq replay --all`,
		ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			var places []place
			for _, a := range args {
				p, err := parsePlace(a)
				if err != nil {
					return err
				}
				places = append(places, p)
			}
			switch {
			case len(places) == 0 && !f.all && !f.any():
				return cli.UsageError("dlq replay needs positions, a filter such as --reason, or --all")
			case len(places) > 0 && (f.all || f.any()):
				return cli.UsageError("dlq replay takes positions, or --all and filters, not both")
			}
			return replayLetters(cmd.Context(), c, places, &f)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	f.flags(cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "all dead letters")
	cmd.Flags().BoolVar(&f.dry, "dry-run", false, "only count them")
	return cmd
}

// replay is one run of dlq replay.
type replay struct {
	c      *cli.Env
	id     string
	actor  string
	host   string
	outbox *stream.Outbox // nil in a dry run

	mu      sync.Mutex
	written map[string]int // by topic
	errs    []error        // the first ones
	failed  int
}

// maxReplayErrors bounds the errors that are listed one by one.
const maxReplayErrors = 20

func replayLetters(ctx context.Context, c *cli.Env, places []place, f *replayFlags) error {
	return c.WithLog(ctx, func(log *stream.Client, _ app.Config) (err error) {
		r := &replay{c: c, id: task.NewID(), actor: cli.UserName(), host: cli.HostName(), written: map[string]int{}}
		if !f.dry {
			r.outbox = log.NewOutbox("replay", replayUnits, replayBytes)
		}
		left := slices.Clone(places)
		now := c.Now()
		scanErr := ignoreEnough(log.Scan(ctx, stream.DLQ, func(rec *stream.Record) error {
			if rec.Header(stream.HeaderReplay) == r.id {
				return nil // this run wrote it, and it died again
			}
			if len(places) == 0 {
				if !f.takes(rec, now) {
					return nil
				}
			} else {
				i := slices.Index(left, placeOf(rec))
				if i < 0 {
					return nil
				}
				left = slices.Delete(left, i, i+1)
			}
			if err := r.one(ctx, rec); err != nil {
				return err
			}
			if len(places) > 0 && len(left) == 0 {
				return errEnough
			}
			return nil
		}))
		if r.outbox != nil {
			// Even after an error: each record handed over is written, or its failure reported.
			err = r.outbox.Close(ctx)
		}
		if scanErr != nil {
			err = errors.Join(readError(scanErr), err)
		}
		for _, p := range left {
			r.fail(fmt.Errorf("there is no dead letter at %s", p))
		}
		return errors.Join(err, r.tell())
	})
}

// one hands one dead letter to the outbox.
func (r *replay) one(ctx context.Context, rec *stream.Record) error {
	topic := rec.Header(records.HeaderDLQTopic)
	if topic == stream.DLQ || !slices.Contains(topicNames(), topic) {
		r.fail(fmt.Errorf("dead letter %s: it came from %q, which is not a topic of Batchyard", placeOf(rec), cli.Short(topic, 64)))
		return nil
	}
	if !records.Whole(rec) {
		r.fail(fmt.Errorf("dead letter %s: it was too large or could not be read, so only its size and hash were kept: have its sender send it again", placeOf(rec)))
		return nil
	}
	done := func(err error) {
		if err != nil {
			r.fail(fmt.Errorf("dead letter %s: writing it to %s: %w", placeOf(rec), topic, err))
			return
		}
		r.mu.Lock()
		r.written[topic]++
		r.mu.Unlock()
	}
	if r.outbox == nil {
		done(nil)
		return nil
	}
	return r.outbox.Put(ctx, stream.Unit{
		Messages: []stream.Message{r.message(rec)},
		Events:   []task.Event{r.event(rec, topic)},
		Acked:    done,
	})
}

// message is the record as it was before it died, with headers that say which run of replay wrote
// it, so that the run skips records that died again meanwhile, and where the dead letter is.
func (r *replay) message(rec *stream.Record) stream.Message {
	m := records.Restore(rec)
	m.Headers = append(m.Headers, stream.Header{Key: stream.HeaderReplay, Value: []byte(r.id)},
		stream.Header{Key: stream.HeaderReplayFrom, Value: []byte(placeOf(rec).String())})
	return m
}

// event records in the audit log who replayed what. It holds no part of the record.
func (r *replay) event(rec *stream.Record, topic string) task.Event {
	detail, err := json.Marshal(map[string]string{
		"dead_letter": rec.Position(), "topic": topic, "replay_id": r.id,
		"stage": cli.Short(rec.Header(records.HeaderDLQStage), 64), "reason": cli.Short(rec.Header(records.HeaderDLQReason), 64),
	})
	if err != nil {
		detail = nil // cannot happen: they are strings
	}
	return task.Event{
		Time: time.Now().UTC(), Action: task.RecordReplayed, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant,
		ActorType: task.ActorUser, ActorID: r.actor, SourceAddr: r.host, UserAgent: "batchyard-cli/" + r.c.Version,
		ResourceType: "record", ResourceID: cli.Short(origin(rec), 300), InputSize: int64(len(rec.Value)), Detail: detail,
	}
}

func (r *replay) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed++; len(r.errs) < maxReplayErrors {
		r.errs = append(r.errs, err)
	}
}

// Replayed is what replay prints as JSON.
type Replayed struct {
	Replay   string         `json:"replay_id,omitempty"`
	Replayed int            `json:"replayed"`
	Topics   map[string]int `json:"topics,omitempty"`
	Failed   int            `json:"failed"`
	DryRun   bool           `json:"dry_run,omitempty"`
}

// tell prints how many were written.
func (r *replay) tell() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Replayed{Replay: r.id, Topics: r.written, Failed: r.failed, DryRun: r.outbox == nil}
	for _, n := range r.written {
		out.Replayed += n
	}
	if r.c.JSON {
		if err := r.c.PrintJSON(out); err != nil {
			return err
		}
	} else {
		verb := "replayed"
		if r.outbox == nil {
			verb = "to be replayed"
		}
		r.c.Printf("%s %s\n", cli.Counted(out.Replayed, "dead letter"), verb)
		topics := make([]string, 0, len(r.written))
		for t := range r.written {
			topics = append(topics, t)
		}
		slices.Sort(topics)
		for _, t := range topics {
			r.c.Printf("  %s: %d\n", t, r.written[t])
		}
	}
	errs := r.errs
	if more := r.failed - len(errs); more > 0 {
		errs = append(errs, fmt.Errorf("and %d more", more))
	}
	return cli.WithCode(cli.ExitFailed, errors.Join(errs...))
}
