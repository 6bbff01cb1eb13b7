package recorder

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// breaks writes down where recording could not simply continue.
type breaks struct {
	key     ed25519.PrivateKey                  // nil: they are not signed
	noticed func(context.Context, *audit.Break) // is called after the transaction
}

const breakSQL = `
INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id, statement)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING`

// write adds a break, in the transaction that makes recording continue there.
func (b *breaks) write(ctx context.Context, tx pgx.Tx, k *audit.Break, instance string) error {
	k.Time, k.ActorID = time.Now().UTC().Truncate(time.Millisecond), instance
	var statement []byte
	if b.key != nil {
		var err error
		if statement, err = k.Sign(b.key); err != nil {
			return err
		}
	}
	var last *int64
	if k.Last != audit.UnknownOffset {
		last = &k.Last
	}
	if _, err := tx.Exec(ctx, breakSQL, k.Topic, k.Partition, string(k.Kind), k.Seq, k.First, last, k.Time, instance, string(statement)); err != nil {
		return fmt.Errorf("writing down that recording %s was interrupted: %w", k.At(), err)
	}
	return nil
}

// actionOf returns the action of the event of a break.
func actionOf(kind audit.BreakKind) task.Action {
	switch kind {
	case audit.RecordedAgain:
		return task.RecordedAgain
	case audit.TopicReplaced:
		return task.TopicReplaced
	default:
		return task.RecordsMissed
	}
}

// reportBreak logs and counts a break, and writes its event. If the process dies before that,
// stream_breaks still says it.
func (r *Recorder) reportBreak(ctx context.Context, out *stream.Outbox, k *audit.Break) {
	r.Logger.Error(messageOf[k.Kind], "topic", k.Topic, "partition", k.Partition, "offsets", k.Offsets(), "why", k.Why, "audit_rows_from", k.Seq)
	countBreak(&r.Metrics.Audit, k)
	e := task.Event{
		Time: k.Time, Action: actionOf(k.Kind), Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: r.Instance,
		ResourceType: "partition", ResourceID: k.At().String(),
	}
	detail := map[string]any{"topic": k.Topic, "partition": k.Partition, "first_offset": k.First, "chain_seq": k.Seq, "why": k.Why}
	if k.Last != audit.UnknownOffset {
		detail["last_offset"] = k.Last
	}
	if k.LostRows > 0 {
		detail["lost_rows"] = k.LostRows
	}
	e.Detail, _ = json.Marshal(detail) // text and numbers: it cannot fail
	if err := out.Put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil && ctx.Err() == nil {
		r.Logger.Warn("the event of an interrupted recording could not be written", "partition", k.At().String(), "error", err)
	}
}

// messageOf is what the log says about each kind of break.
var messageOf = map[audit.BreakKind]string{
	audit.RecordedAgain: "Postgres has lost records that it had confirmed: recording them again from Kafka",
	audit.TopicReplaced: "a topic is not the one that was recorded before: recording it from its beginning; what the old one held and was not recorded is lost",
	audit.RecordsMissed: "records were deleted from Kafka before they were recorded: raise the retention of the topics, or keep Postgres up",
}

func countBreak(m *metrics.Audit, k *audit.Break) {
	m.Breaks.WithLabelValues(string(k.Kind)).Inc()
	if k.Kind == audit.RecordsMissed {
		m.MissedRecords.Add(float64(k.Last - k.First + 1))
	}
}
