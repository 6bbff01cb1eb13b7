package wire_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// bombs are small records that would become large.
func bombs(t testing.TB) map[string][]byte {
	t.Helper()
	list := func(n int, of string) string { return "[" + strings.TrimSuffix(strings.Repeat(of+",", n), ",") + "]" }
	pack := func(v any) []byte {
		b, err := msgpack.Marshal(v)
		require.NoError(t, err)
		return b
	}
	labels := map[string]string{}
	for i := range 40_000 {
		labels[fmt.Sprint(i)] = ""
	}
	asJSON, err := json.Marshal(map[string]any{"labels": labels})
	require.NoError(t, err)
	many := func(n int, of byte) []byte {
		return append([]byte{0xdd, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, bytes.Repeat([]byte{of}, n)...)
	}
	frame := func(kind string, entries ...byte) []byte {
		return append(append([]byte{0x93, 1}, pack(kind)...), entries...)
	}
	// A list of one assignment or batch with the bytes as its only field.
	inTask := func(value []byte) []byte { // task: 21 fields; the 8th is needs, the 16th labels, the 21st progress
		task := append([]byte{0xdc, 0, 21}, bytes.Repeat([]byte{0xc0}, 7)...)
		task = append(append(task, value...), bytes.Repeat([]byte{0xc0}, 13)...)
		return append([]byte{0x91, 0x91}, task...)
	}
	progress := append([]byte{0xdc, 0, 21}, bytes.Repeat([]byte{0xc0}, 20)...)
	progress = append(append(progress, 0x81), pack("attempts")...)
	progress = append(append([]byte{0x91, 0x91}, progress...), many(100_000, 0x80)...)
	edge := func(name string, value []byte) []byte { return append(append([]byte{0x81}, pack(name)...), value...) }
	text := func(c string, n int) string { return strings.Repeat(c, n) }
	return map[string][]byte{
		"attempts in JSON":                  []byte(`{"progress":{"attempts":` + list(100_000, "{}") + `}}`),
		"attempts of a result":              []byte(`{"attempts":` + list(100_000, "{}") + `}`),
		"needs in JSON":                     []byte(`{"needs":` + list(100_000, `""`) + `}`),
		"labels in JSON":                    asJSON,
		"unknown in JSON":                   []byte(`{"x":` + list(100_000, `{}`) + `}`),
		"input in JSON":                     []byte(`{"input":{"x":` + list(400_000, `{}`) + `}}`),
		"long id in JSON":                   []byte(`{"task_id":"` + text("x", 2<<20) + `"}`),
		"escapes in JSON":                   []byte(`{"task_id":"` + text(`\u0001`, 200_000) + `"}`),
		"bad keys in JSON":                  []byte(`{"` + text("k", 2<<20) + `":1}`),
		"long input in JSON":                []byte(`{"input":{"x":"` + text("x", 8<<20) + `"}}`),
		"output in JSON":                    []byte(`{"output":{"x":"` + text("x", 8<<20) + `"}}`),
		"attempts in MessagePack":           edge("progress", edge("attempts", many(100_000, 0x80))),
		"attempts of a result, MessagePack": edge("attempts", many(100_000, 0x80)),
		"needs in MessagePack":              edge("needs", many(100_000, 0xa0)),
		"labels in MessagePack":             pack(map[string]any{"labels": labels}),
		"input in MessagePack":              pack(map[string]any{"input": map[string]any{"x": text("x", 8<<20)}}),
		"controls in MessagePack":           pack(map[string]any{"input": map[string]any{"x": text("\x01", 4<<20)}}),
		"quotes in MessagePack":             pack(map[string]any{"input": map[string]any{"x": text(`"`, 4<<20)}}),
		"numbers in MessagePack":            edge("input", edge("x", many(1<<20, 0xff))),
		"nils in MessagePack":               edge("input", edge("x", many(1<<20, 0xc0))),
		"bytes in MessagePack":              pack(map[string]any{"input": map[string]any{"x": []byte(text("x", 4<<20))}}),
		"text in MessagePack":               pack(map[string]any{"input": text("x", 8<<20)}),
		"output in MessagePack":             pack(map[string]any{"output": text("x", 8<<20)}),
		"long id in MessagePack":            pack(map[string]any{"task_id": text("x", 8<<20)}),
		"inputs in MessagePack":             append(append([]byte{0x82}, pack("input")...), append(pack([]byte(text("x", 4<<20))), append(pack("input"), pack([]byte(text("x", 4<<20)))...)...)...),
		"assignments":                       frame(wire.FrameAssignments, many(wire.MaxFrameEntries, 0x90)...),
		"nil assignments":                   frame(wire.FrameAssignments, many(wire.MaxFrameEntries, 0xc0)...),
		"batches":                           frame(wire.FrameBatches, many(wire.MaxFrameEntries, 0x90)...),
		"assignments of a batch":            frame(wire.FrameBatches, append(append([]byte{0x91, 0x98}, bytes.Repeat([]byte{0xc0}, 7)...), many(100_000, 0x90)...)...),
		"events":                            frame(wire.FrameEvents, many(wire.MaxFrameEvents, 0x90)...),
		"needs of an assignment":            frame(wire.FrameAssignments, inTask(many(100_000, 0xa0))...),
		"attempts of an assignment":         frame(wire.FrameAssignments, progress...),
	}
}

// TestMemoryIsProportional: decoding any record takes at most four times its bytes, and a
// mebibyte.
func TestMemoryIsProportional(t *testing.T) {
	for name, b := range bombs(t) {
		for what, decode := range map[string]func(){
			"task":        func() { _, _ = wire.DecodeTask(b, "") },
			"own task":    func() { _, _ = wire.DecodeOwnTask(b, "") },
			"result":      func() { _, _ = wire.DecodeResult(b, "") },
			"events":      func() { _, _ = wire.DecodeFrame[task.Event](wire.FrameEvents, b) },
			"assignments": func() { _, _ = wire.DecodeFrame[task.Assignment](wire.FrameAssignments, b) },
			"batches":     func() { _, _ = wire.DecodeFrame[task.Batch](wire.FrameBatches, b) },
		} {
			t.Run(name+" as "+what, func(t *testing.T) { fuzzing.Bound(t, len(b), decode) })
		}
	}
}

// TestTheLargestRecordsPass: the limits tested above do not affect valid tasks.
func TestTheLargestRecordsPass(t *testing.T) {
	one := full()
	text := func(n int) string { return strings.Repeat("é", n) }
	one.Needs, one.Labels, one.Progress = nil, map[string]string{}, &task.Progress{Requeues: 1}
	for i := range task.MaxNeeds {
		one.Needs = append(one.Needs, fmt.Sprint(i, text(200)))
	}
	for i := range task.MaxLabels {
		one.Labels[fmt.Sprint(i, text(50))] = text(500)
	}
	for i := range 4 * task.MaxAttemptsLimit {
		one.Progress.Exclude = append(one.Progress.Exclude, fmt.Sprint(i, text(200)))
		one.Progress.Attempts = append(one.Progress.Attempts, task.Attempt{Number: i + 1, Model: text(200), DeviceID: text(200),
			Class: task.ClassTimeout, Status: 504, Message: text(1000), At: time.Unix(1, 0), Duration: 12345})
	}
	one.Normalize(time.Unix(1, 0))
	require.NoError(t, one.Validate(task.Limits{}))
	res := task.NewResult(one, task.Failed, time.Unix(2, 0))
	res.Attempts = append(one.Progress.Attempts, one.Progress.Attempts[:task.MaxAttemptsLimit]...)
	for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		b, err := wire.EncodeTask(one, ct)
		require.NoError(t, err)
		got, err := wire.DecodeOwnTask(b, ct)
		require.NoError(t, err, ct)
		require.Equal(t, one.Progress.Exclude, got.Progress.Exclude)
		require.Len(t, got.Progress.Attempts, len(one.Progress.Attempts))
		b, err = wire.EncodeResult(res, ct)
		require.NoError(t, err)
		_, err = wire.DecodeResult(b, ct)
		require.NoError(t, err, ct)
	}
	small := task.Assignment{Task: task.Task{ID: "a", Tenant: "t", Model: "m", Endpoint: task.EndpointChat, Input: task.Input(`{}`), Priority: task.Normal,
		TraceID: strings.Repeat("0", 32), SubmittedAt: time.Unix(1, 0)}, Device: task.DeviceRef{ID: "d", URL: "http://d", Slots: 1}, Attempt: 1, AssignedAt: time.Unix(1, 0),
		Lease: task.Lease{Pool: "d/single", ID: strings.Repeat("x", 20)}}
	for _, n := range []int{1, 2000} {
		as := make([]task.Assignment, n)
		for i := range as {
			as[i] = small
		}
		b, err := wire.EncodeFrame(wire.FrameAssignments, as)
		require.NoError(t, err)
		_, err = wire.DecodeFrame[task.Assignment](wire.FrameAssignments, b)
		require.NoError(t, err)
		b, err = wire.EncodeFrame(wire.FrameBatches, []task.Batch{{ID: "b", Device: small.Device, Assignments: as}})
		require.NoError(t, err)
		_, err = wire.DecodeFrame[task.Batch](wire.FrameBatches, b)
		require.NoError(t, err)
	}
	tried := small
	tried.Task = *one
	for _, n := range []int{1, 20} {
		as := make([]task.Assignment, n)
		for i := range as {
			as[i] = tried
		}
		b, err := wire.EncodeFrame(wire.FrameAssignments, as)
		require.NoError(t, err)
		_, err = wire.DecodeFrame[task.Assignment](wire.FrameAssignments, b)
		require.NoError(t, err)
	}
}
