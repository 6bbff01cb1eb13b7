// Package clean makes events and results fit into the tables, and refuses those that cannot be
// recorded as what they claim to be. The recorder uses it, and so do programs that compare the log
// with the tables.
package clean

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Bounds of what a row holds, in characters. Longer text is truncated: the event happened, whatever
// its sender calls itself.
const (
	MaxShort   = 64  // words: actions, outcomes, classes, priorities
	MaxName    = 256 // who and what: actors, jobs, devices, models
	MaxText    = 512
	maxMessage = 4096
	maxAttempt = 1_000_000

	// maxCount bounds tokens and sizes. A device may report anything up to 2⁶³-1, and the sums over
	// an hour and a day have to fit into 64 bits.
	maxCount = 1 << 32
)

// Event changes an event to the form in which it is recorded; written is the time of its record. An error
// means that it cannot be recorded as what it claims to be and becomes a dead letter; then it is unchanged.
func Event(e *task.Event, written time.Time) error {
	if !e.Action.Listed() {
		return fmt.Errorf("unknown action %q: it is not one of this version of Batchyard", pg.Truncate(string(e.Action), MaxShort))
	}
	if err := checkKey(e.Tenant, e.TaskID); err != nil {
		return err
	}
	if e.Attempt < 0 || e.Attempt > maxAttempt {
		return fmt.Errorf("attempt %d is out of range", e.Attempt)
	}
	fit(&e.ActorID, MaxName)
	fit(&e.SourceAddr, MaxName)
	fit(&e.UserAgent, MaxText)
	fit(&e.ResourceType, MaxShort)
	fit(&e.ResourceID, MaxText)
	fit(&e.JobID, MaxName)
	fit(&e.BatchID, MaxName)
	fit(&e.DeviceID, MaxName)
	fit(&e.TraceID, MaxShort)
	fit(&e.Model, MaxName)
	fit(&e.Endpoint, MaxName)
	fit(&e.CustomID, MaxText)
	fit(&e.ErrorClass, MaxShort)
	fit(&e.Outcome, MaxShort)
	fit(&e.ActorType, MaxShort)
	fit(&e.Priority, MaxShort)
	if len(e.InputSHA256) != 32 {
		e.InputSHA256 = nil
	}
	if len(e.OutputSHA256) != 32 {
		e.OutputSHA256 = nil
	}
	for _, n := range [...]*int64{&e.InputTokens, &e.OutputTokens, &e.InputSize, &e.OutputSize} {
		*n = min(max(*n, 0), maxCount)
	}
	stamped := e.Time
	e.Time = believable(stamped, written)
	e.SubmittedAt, e.Deadline = microOrNone(e.SubmittedAt), microOrNone(e.Deadline)
	if len(e.Detail) > 0 && (len(e.Detail) > task.MaxDetail || e.Detail[0] != '{' || task.CheckJSON(e.Detail) != nil) {
		e.Detail = fmt.Appendf(nil, `{"unreadable_bytes":%d}`, len(e.Detail))
	}
	if !pg.InRange(stamped) {
		e.Detail = withStamp(e.Detail, stamped)
	}
	return nil
}

// withStamp adds to a detail, which is empty or a JSON object, what time its sender believed it was.
func withStamp(detail []byte, stamped time.Time) []byte {
	b := fmt.Appendf(nil, `{"stamped":%q`, stamped.UTC().Format(time.RFC3339))
	if len(detail) > 0 {
		if rest := bytes.TrimSpace(detail[1:]); rest[0] != '}' && len(b)+1+len(rest) <= task.MaxDetail {
			return append(append(b, ','), rest...)
		}
	}
	return append(b, '}')
}

// Result changes a result, as [task.DecodeResult] returned it, to the form in which it is recorded; written
// is the time of its record. An error means that it becomes a dead letter.
func Result(r *task.Result, written time.Time) error {
	if err := r.ValidateDecoded(); err != nil {
		return err
	}
	if n := r.Attempt(); n < 0 || n > maxAttempt {
		return fmt.Errorf("attempt %d is out of range", n)
	}
	if r.Status < 0 || r.Status > math.MaxInt32 {
		return fmt.Errorf("status %d is out of range", r.Status)
	}
	if r.Error != nil {
		fit(&r.Error.Class, MaxShort)
		fit(&r.Error.Message, maxMessage)
	}
	r.Usage.InputTokens = min(max(r.Usage.InputTokens, 0), maxCount)
	r.Usage.OutputTokens = min(max(r.Usage.OutputTokens, 0), maxCount)
	fit(&r.Priority, MaxShort)
	r.FinishedAt = believable(r.FinishedAt, written)
	r.SubmittedAt, r.AssignedAt, r.StartedAt = microOrNone(r.SubmittedAt), microOrNone(r.AssignedAt), microOrNone(r.StartedAt)
	return nil
}

// checkKey refuses an identity that the tables cannot hold. It must not be truncated, because then
// it would be another task's.
func checkKey(tenant, id string) error {
	for _, f := range [...]struct{ name, s string }{{"tenant", tenant}, {"task id", id}} {
		if len(f.s) <= task.MaxIDLength && task.Plain(f.s) {
			continue
		}
		if !pg.Fits(f.s, task.MaxIDLength) {
			return fmt.Errorf("the %s is longer than %d characters, or contains what Postgres cannot store", f.name, task.MaxIDLength)
		}
	}
	if tenant == "" && id != "" {
		return errors.New("the task has no tenant")
	}
	return nil
}

// believable returns the time that a process has stamped, or if its clock was so wrong that the tables do
// not hold it, the time of the record: what happened is worth more than when. It depends on the record
// alone, so that it is the same whenever the record is read.
func believable(stamped, written time.Time) time.Time {
	for _, t := range []time.Time{stamped, written} {
		if pg.InRange(t) {
			return Micro(t)
		}
	}
	return pg.MinTime
}

// Micro returns the time as Postgres stores it, in microseconds.
func Micro(t time.Time) time.Time {
	if t = t.UTC(); t.Nanosecond()%1000 == 0 {
		return t.Round(0)
	}
	return t.Truncate(time.Microsecond)
}

func microOrNone(t time.Time) time.Time {
	if !pg.InRange(t) {
		return time.Time{}
	}
	return Micro(t)
}

// fit is [pg.Truncate], fast for text that fits.
func fit[T ~string](s *T, n int) {
	if v := string(*s); len(v) > n || !task.Plain(v) {
		*s = T(pg.Truncate(v, n))
	}
}
