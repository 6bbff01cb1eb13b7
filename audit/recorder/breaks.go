package recorder

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// breaks writes down where recording could not simply continue.
type breaks struct {
	key     ed25519.PrivateKey                  // nil: they are not signed
	noticed func(context.Context, *audit.Break) // is called after the transaction
}

// eventOf returns the event of a break.
func eventOf(k *audit.Break) task.Event {
	e := task.Event{
		Time: k.Time, Action: actionOf(k.Kind), Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: k.ActorID,
		ResourceType: "partition", ResourceID: k.At().String(),
	}
	e.Detail = k.Detail()
	return e
}

// reported returns the hole that another stage has found in its topic; nil if the event is about nothing
// of the kind. Its row is that of the event.
func reported(e *task.Event) *audit.Break {
	if e.Action != task.RecordsMissed {
		return nil
	}
	k, err := audit.BreakOf(audit.RecordsMissed, e.Detail)
	if err != nil || k.Topic == "" {
		return nil // its row says what there is to say
	}
	k.Time, k.ActorID = e.Time.Truncate(time.Millisecond), e.ActorID
	return k
}

const breakSQL = `
INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`

// write adds a break, in the transaction that makes recording continue there, and if it is a hole its row
// at the end of the chain.
func (b *breaks) write(ctx context.Context, tx pgx.Tx, k *audit.Break, end *chainEnd, instance string) error {
	k.Time, k.ActorID = time.Now().UTC().Truncate(time.Millisecond), instance
	if k.Hole() {
		var batch pgx.Batch
		e, rows := eventOf(k), rowEncoder{}
		rows.resetCopy()
		if end.Rows == 0 {
			end.Hash = audit.Genesis(k.At())
		}
		rows.row(&e, k.At().At(audit.Position{Offset: k.First}), k.Time, nil, end)
		k.Seq = end.Rows + 1
		if _, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(rows.EndCopy()), copyRowsSQL(auditLog)); err != nil {
			return fmt.Errorf("writing down that recording %s was interrupted: %w", k.At(), err)
		}
		chains{k.At(): end}.queueWrite(&batch)
		if err := pg.Flush(ctx, tx, &batch, "writing down that recording "+k.At().String()+" was interrupted"); err != nil {
			return err
		}
	}
	return b.state(ctx, tx, k)
}

// state adds a break to stream_breaks and, signed, to the statements, whose chain the checkpoints cover. A break
// that is there already, because the event about it was delivered twice, is not added again.
func (b *breaks) state(ctx context.Context, tx pgx.Tx, k *audit.Break) error {
	var last *int64
	if k.Last != audit.UnknownOffset {
		last = &k.Last
	}
	added, err := tx.Exec(ctx, breakSQL, k.Topic, k.Partition, string(k.Kind), k.Seq, k.First, last, k.Time, k.ActorID)
	if err != nil {
		return fmt.Errorf("writing down that recording %s was interrupted: %w", k.At(), err)
	}
	if b.key == nil || added.RowsAffected() == 0 {
		return nil
	}
	return statements.Append(ctx, tx, b.key, &audit.Statement{Kind: audit.RecordingInterrupted, ActorID: k.ActorID, Break: k})
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

// reportBreak logs and counts a break, and writes its event, unless that is in the chain already. If the
// process dies before that, stream_breaks still says it.
func (r *Recorder) reportBreak(ctx context.Context, out *stream.Outbox, k *audit.Break) {
	r.Logger.Error(messageOf[k.Kind], "topic", k.Topic, "partition", k.Partition, "offsets", k.Offsets(), "why", k.Why, "audit_rows_from", k.Seq)
	countBreak(&r.Metrics.Audit, k)
	if k.Hole() {
		return
	}
	if err := out.Put(ctx, stream.Unit{Events: []task.Event{eventOf(k)}}); err != nil && ctx.Err() == nil {
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
