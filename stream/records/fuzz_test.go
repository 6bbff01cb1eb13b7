package records

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Records and their headers come from any client. A dead letter keeps the record's bytes; its
// event contains none of them.
func FuzzHeaders(f *testing.F) {
	f.Add("parked-until", []byte("2026-01-31T12:00:00.5Z"), []byte("k"), []byte("value"), "it is broken")
	f.Add("dlq-stage", []byte("router"), []byte{0xff}, []byte{}, strings.Repeat("é", 600))
	f.Add("content-type", []byte{0}, []byte(nil), []byte(nil), "")
	f.Add("content-type", []byte{0}, []byte(nil), []byte(nil), strings.Repeat("\x01", 1024)) // six bytes each in JSON
	f.Fuzz(func(t *testing.T, header string, value, key, body []byte, cause string) {
		r := &stream.Record{Topic: stream.TasksLow, Offset: 7, Key: key, Value: body, Headers: []stream.Header{{Key: header, Value: value}, {Key: HeaderAccepted, Value: value}}, Time: time.Unix(1, 0)}
		size := len(header) + 2*len(value) + len(key) + len(body) + len(cause)
		var m stream.Message
		var e task.Event
		why := textError(cause)
		fuzzing.Bound(t, size, func() {
			m = DeadLetter(r, "router", "invalid", why)
			e = (&DeadLetters{Stage: "router", Instance: "router@h-1"}).event(Letter{Record: r, Reason: ReasonInvalid, Cause: why})
			_, _ = RequeueHeaders(r), TaskID(r)
		})
		require.Equal(t, string(body), string(m.Value))
		dead := 0
		for _, h := range m.Headers {
			if h.Key == HeaderDLQError {
				require.LessOrEqual(t, len(h.Value), maxDLQError)
			}
			if h.Key == HeaderDLQStage {
				dead++
			}
		}
		require.Equal(t, 1, dead, "headers of an earlier dead letter are dropped")
		require.LessOrEqual(t, len(e.Detail), task.MaxDetail)
		require.NotContains(t, string(e.Detail), "parked-until")
		frame, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{e})
		require.NoError(t, err)
		_, err = wire.DecodeFrame[task.Event](wire.FrameEvents, frame)
		require.NoError(t, err)
	})
}

type textError string

func (e textError) Error() string { return string(e) }
