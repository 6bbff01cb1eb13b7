package recorder

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
)

// Events keep their indexes when others of their record cannot be recorded, and those are kept
// unchanged, because they may be replayed later.
func TestAnEntrySeparatesGoodAndBadEvents(t *testing.T) {
	at := time.Now().UTC()
	good := func(id string) task.Event {
		return task.Event{Time: at.Truncate(time.Microsecond), Action: task.TaskQueued, Tenant: "acme", TaskID: id}
	}
	odd := task.Event{Time: at, Action: task.TaskQueued, Tenant: "acme", ActorID: "a\x00b" + strings.Repeat("x", 1000), InputSHA256: []byte{1}, InputTokens: -5, Detail: []byte(`{`)}
	noAction, noTenant, noAttempt := odd, odd, odd
	noAction.Action, noTenant.Tenant, noTenant.TaskID, noAttempt.Attempt = "task.teleported", "", "t", -1
	noTime := good("c")
	noTime.Detail = []byte(`{ "a":1}`)
	noTime.Time = time.Unix(1, 0).UTC() // by a wrong clock
	all := []task.Event{noAction, good("a"), noTenant, noTime, good("b"), noAttempt}
	b, err := wire.EncodeFrame(wire.FrameEvents, all)
	require.NoError(t, err)
	e := &entry{at: at}
	e.decode(b)
	stamped := good("c")
	stamped.Detail = []byte(`{"stamped":"1970-01-01T00:00:01Z","a":1}`)
	require.Equal(t, []indexedEvent{{1, good("a")}, {3, stamped}, {4, good("b")}}, e.events)
	require.Len(t, e.dead, 3)
	for i, was := range []task.Event{noAction, noTenant, noAttempt} {
		require.Equal(t, "invalid", e.dead[i].reason)
		require.Equal(t, []task.Event{was}, e.dead[i].events)
	}

	for i := range b { // cut anywhere
		e := &entry{}
		e.decode(b[:i])
		require.Empty(t, e.events)
		require.Len(t, e.dead, 1)
		require.Equal(t, "unreadable", e.dead[0].reason)
		require.Nil(t, e.dead[0].events, "the whole record")
	}
}

func requireStorable(t require.TestingT, s string, most int) {
	require.True(t, utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 && utf8.RuneCountInString(s) <= most, "Postgres cannot store %q", s)
}

// FuzzEntry: whatever is in the log, what is recorded of it fits into its row.
func FuzzEntry(f *testing.F) {
	es, r := audittest.NewStory("t1").Life()
	b, err := wire.EncodeFrame(wire.FrameEvents, es)
	require.NoError(f, err)
	f.Add(b)
	for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		b, err := wire.EncodeResult(r, ct)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { new(entry).decode(b) })
		fuzzing.Bound(t, len(b), func() { new(entry).decodeAsResult(b, "") })
		e := &entry{}
		e.decode(bytes.Clone(b))
		require.True(t, len(e.dead)+len(e.events) > 0 || len(b) < 32)
		for i := range e.events {
			v := &e.events[i].event
			requireStorable(t, v.Tenant, task.MaxIDLength)
			requireStorable(t, v.TaskID, task.MaxIDLength)
			for _, s := range []string{v.ActorID, v.SourceAddr, v.JobID, v.BatchID, v.DeviceID, v.Model, v.Endpoint} {
				requireStorable(t, s, clean.MaxName)
			}
			for _, s := range []string{v.UserAgent, v.ResourceID, v.CustomID} {
				requireStorable(t, s, clean.MaxText)
			}
			for _, s := range []string{v.ResourceType, v.TraceID, string(v.ErrorClass), string(v.Outcome), string(v.ActorType), string(v.Priority)} {
				requireStorable(t, s, clean.MaxShort)
			}
			require.True(t, len(v.Detail) == 0 || len(v.Detail) <= task.MaxDetail && task.CheckJSON(v.Detail) == nil)
		}
		e = &entry{}
		if e.decodeAsResult(b, ""); e.result != nil {
			require.NoError(t, e.result.Validate(), "the output was not checked")
		}
	})
}
