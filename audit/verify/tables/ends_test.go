package tables

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/internal/pg"
)

// rowOf returns a row of so many fields, of which some are not NULL.
func rowOf(t require.TestingT, width int, fields map[int][]byte) *copyrows.Row {
	b := binary.BigEndian.AppendUint16(nil, uint16(width)) //nolint:gosec // it is small
	for i := range width {
		f, ok := fields[i]
		if !ok {
			b = append(b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...) //nolint:gosec // it is short
	}
	var r copyrows.Row
	n, err := r.Parse(b, width)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	return &r
}

func timeField(at time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro()-pg.Epoch)) //nolint:gosec // two's complement
}

// Nothing is left in any bucket if each event of an end has its result, or came second; and something is if not.
func TestEndsAndResultsCancelOut(t *testing.T) {
	t.Parallel()
	actions := map[string]string{"SUCCESS": "task.succeeded", "FAILED": "task.failed", "CANCELLED": "task.cancelled", "EXPIRED": "task.expired"}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2026, 1, 9, 0, 0, 0, 0, time.UTC)
		l := NewLog(Options{Now: now, Before: now})
		c := l.Counter()
		result := func(id, state string, at time.Time) {
			c.result(rowOf(t, 28, map[int][]byte{0: []byte("acme"), 1: []byte(id), resultState: []byte(state), 7: {0, 0, 0, 1}, resultFinished: timeField(at)}))
		}
		event := func(id, action string, at time.Time, detail string) {
			c.Row(rowOf(t, audit.RowWidth, map[int][]byte{audit.ColTime: timeField(at), audit.ColTenant: []byte("acme"), audit.ColTask: []byte(id), audit.ColAction: []byte(action), audit.ColDetail: []byte(detail)}))
		}
		lost := -1
		n := rapid.IntRange(1, 20).Draw(t, "tasks")
		if rapid.Bool().Draw(t, "one result is lost") {
			lost = rapid.IntRange(0, n-1).Draw(t, "lost")
		}
		for i := range n {
			id, state := fmt.Sprint("t", i), rapid.SampledFrom([]string{"SUCCESS", "FAILED", "CANCELLED", "EXPIRED"}).Draw(t, "state")
			at := now.Add(-time.Duration(rapid.Int64Range(1, int64(72*time.Hour/time.Microsecond)).Draw(t, "ago")) * time.Microsecond)
			event(id, actions[state], at, "{}")
			if rapid.Bool().Draw(t, "twice") {
				second := at.Add(-time.Second)
				event(id, actions[state], second, "{}")
				event(id, "result.duplicate", second, fmt.Sprintf(`{"finished_at":%q,"state":%q}`, second.Format(time.RFC3339Nano), state))
			}
			if i != lost {
				result(id, state, at)
			}
		}
		event("new", "task.succeeded", now, "{}") // its result may be on its way
		l.Absorb(c)
		left := false
		for _, d := range l.counted.ends {
			left = left || *d != (dayOfEnds{})
		}
		require.Equal(t, lost >= 0, left)
	})
}
