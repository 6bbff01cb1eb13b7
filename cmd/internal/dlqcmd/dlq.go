// Package dlqcmd holds the commands that show and replay dead letters.
package dlqcmd

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// Command returns the command dlq.
func Command(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "dlq", Short: "Show dead letters, or replay them",
		Long: `Records that cannot be processed are kept unchanged in the topic dlq, with headers
that say which stage gave up, and why. These commands read the topic themselves,
from the Kafka of the configuration.

A dead letter stays until the retention of its topic removes it, even after it was
replayed.`,
		Example: "  batchyard dlq list\n  batchyard dlq show 3@42\n  batchyard dlq replay 3@42",
	}, listCommand(c), showCommand(c), replayCommand(c))
}

// letterFilter chooses dead letters.
type letterFilter struct {
	stage, reason, topic string
	since                time.Duration
}

func (f *letterFilter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.stage, "stage", "", "only records that this `stage` gave up")
	cmd.Flags().StringVar(&f.reason, "reason", "", "only records with this `reason`")
	cmd.Flags().StringVar(&f.topic, "topic", "", "only records that came from this `topic`")
	cmd.Flags().DurationVar(&f.since, "since", 0, "only records that are not older than this")
	cli.CompleteFlag(cmd, "stage", app.StageNames())
	cli.CompleteFlag(cmd, "topic", topicNames())
}

// check refuses filters that can match no dead letter.
func (f *letterFilter) check() error {
	switch {
	case f.stage != "" && !slices.Contains(app.StageNames(), f.stage):
		return cli.UsageError("unknown stage %q: use %s", f.stage, cli.Or(app.StageNames()))
	case f.topic != "" && !slices.Contains(topicNames(), f.topic):
		return cli.UsageError("unknown topic %q: use %s", f.topic, cli.Or(topicNames()))
	case f.since < 0:
		return cli.UsageError("--since must not be negative")
	}
	return nil
}

func (f *letterFilter) any() bool { return *f != letterFilter{} }

func (f *letterFilter) takes(r *stream.Record, now time.Time) bool {
	return (f.stage == "" || r.Header(records.HeaderDLQStage) == f.stage) &&
		(f.reason == "" || r.Header(records.HeaderDLQReason) == f.reason) &&
		(f.topic == "" || r.Header(records.HeaderDLQTopic) == f.topic) &&
		(f.since <= 0 || now.Sub(diedAt(r)) <= f.since)
}

// diedAt is when the stage gave the record up.
func diedAt(r *stream.Record) time.Time {
	if at, err := time.Parse(time.RFC3339Nano, r.Header(records.HeaderDLQTime)); err == nil {
		return at
	}
	return r.Time
}

// place is the position of a dead letter: partition and offset of the topic dlq.
type place struct {
	partition int
	offset    int64
}

func (p place) String() string { return fmt.Sprintf("%d@%d", p.partition, p.offset) }

func placeOf(r *stream.Record) place { return place{r.Partition, r.Offset} }

// parsePlace reads 3@42, also as dlq/3@42.
func parsePlace(s string) (place, error) {
	partition, offset, ok := strings.Cut(strings.TrimPrefix(s, stream.DLQ+"/"), "@")
	p, err := strconv.ParseUint(partition, 10, 31)
	o, err2 := strconv.ParseUint(offset, 10, 63)
	if !ok || err != nil || err2 != nil {
		return place{}, cli.UsageError("invalid position %q: write PARTITION@OFFSET, such as 3@42, as `batchyard dlq list` shows it", s)
	}
	return place{int(p), int64(o)}, nil //nolint:gosec // 63 bits fit
}

// origin is where a dead letter came from.
func origin(r *stream.Record) string {
	return fmt.Sprintf("%s/%s@%s", r.Header(records.HeaderDLQTopic), r.Header(records.HeaderDLQPartition), r.Header(records.HeaderDLQOffset))
}

// Letter is a dead letter in JSON.
type Letter struct {
	At      string    `json:"at"` // partition@offset in the topic dlq
	Time    time.Time `json:"time"`
	Stage   string    `json:"stage"`
	Reason  string    `json:"reason"`
	Error   string    `json:"error,omitempty"`
	From    string    `json:"from"` // topic/partition@offset that it came from
	Topic   string    `json:"topic"`
	Key     string    `json:"key,omitempty"`
	Size    int       `json:"size"`
	Headers []Header  `json:"headers,omitempty"`
	Value   []byte    `json:"value,omitempty"` // base64
	Text    string    `json:"text,omitempty"`  // the value, when it is text
}

// Header is one header of a dead letter.
type Header struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// letterOf returns a dead letter without its headers and its value.
func letterOf(r *stream.Record) Letter {
	return Letter{
		At: placeOf(r).String(), Time: diedAt(r).UTC(), Stage: r.Header(records.HeaderDLQStage), Reason: r.Header(records.HeaderDLQReason),
		Error: r.Header(records.HeaderDLQError), From: origin(r), Topic: r.Header(records.HeaderDLQTopic), Key: string(r.Key), Size: len(r.Value),
	}
}

func wholeLetterOf(r *stream.Record) Letter {
	l := letterOf(r)
	for _, h := range r.Headers {
		l.Headers = append(l.Headers, Header{h.Key, string(h.Value)})
	}
	l.Value = r.Value
	if cli.IsText(r.Value) {
		l.Text = string(r.Value)
	}
	return l
}

// errEnough ends a scan that has found what it looked for.
var errEnough = errors.New("enough")

func ignoreEnough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func topicNames() []string {
	out := make([]string, len(stream.Topics))
	for i, t := range stream.Topics {
		out[i] = t.Name
	}
	return out
}
