package records

import (
	"time"

	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
)

// Waiting says what waits in a stage as far as its records and Kafka show. judge may change what is said of something, or
// drop it, because the stage knows better why it waits; nil changes nothing.
func Waiting(cl *stream.Client, stage string, now time.Time, judge func(u *stream.Unfinished, o *waiting.Oldest) (report bool)) (l waiting.List) {
	held := waiting.Stuck
	since, failing, err := cl.Writing()
	if failing {
		held = waiting.Kafka
		l.Add(waiting.Oldest{Reason: waiting.Kafka, What: "what the stage writes", Since: since, Still: since, Cause: err.Error()})
	}
	reasons := map[stream.Progress]waiting.Reason{
		stream.InFlight: held, stream.InHandler: held, stream.AtRest: waiting.Refused,
		stream.NotRead: waiting.Unread, stream.NotBegun: waiting.Kafka, stream.Failing: waiting.Kafka,
	}
	for _, u := range cl.Unfinished(stage, now) {
		o := waiting.Oldest{Reason: reasons[u.Progress], What: u.Topic, Since: u.Since, Still: u.Since, Cause: u.Cause}
		if u.Ownership != nil {
			o.What = u.Ownership.Position(u.Offset)
		}
		if judge == nil || judge(&u, &o) {
			l.Add(o)
		}
	}
	return l
}
