package recorder

import (
	"context"
	"errors"
	"fmt"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// reasonRefused is the reason of a dead letter whose content Postgres refuses; the other reasons
// are those of package stream.
const reasonRefused = "refused"

// deadLetter is what goes to the dead-letter topic: a record, or those of its events that cannot
// be recorded.
type deadLetter struct {
	entry  *entry
	reason string
	cause  error
	events []task.Event // nil: the record as it is
}

// setAside makes a dead letter of a unit. The indexes of the later events of its record change.
func (u unit) setAside(reason string, cause error) {
	l := deadLetter{entry: u.entry, reason: reason, cause: cause}
	if u.index == resultIndex {
		u.entry.result = nil
	} else {
		l.events = append(l.events, u.entry.events[u.index].event)
		u.entry.events = append(u.entry.events[:u.index], u.entry.events[u.index+1:]...)
	}
	u.entry.dead = append(u.entry.dead, l)
}

// sendDead writes dead letters and returns when all are acknowledged. Of a record of which other
// events are recorded only those that are not are written, so that replaying the dead letter does
// not record the others again.
func sendDead(ctx context.Context, to *records.DeadLetters, letters []deadLetter) error {
	acks := make(chan error, len(letters))
	for _, l := range letters {
		letter := records.Letter{
			Record: l.entry.rec.(*stream.Record), // the stage has no others
			Reason: l.reason, Cause: errors.New(pg.Describe(l.cause)), Entries: len(l.events),
			Done: func(err error) { acks <- err },
		}
		if l.events != nil {
			b, err := wire.EncodeFrame(wire.FrameEvents, l.events)
			if err != nil {
				return fmt.Errorf("writing a dead letter of %s: %w", letter.Record.Position(), err)
			}
			letter.Value = b
		}
		if err := to.Put(ctx, letter); err != nil {
			return err
		}
	}
	for _, l := range letters {
		select {
		case err := <-acks:
			if err != nil {
				return fmt.Errorf("writing a dead letter of %s: %w", l.entry.part, err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
