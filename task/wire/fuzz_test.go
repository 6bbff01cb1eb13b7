package wire_test

import (
	"testing"
	"time"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// seeds are records in both formats, and small bombs.
func seeds(f *testing.F) {
	f.Helper()
	for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		b, _ := wire.EncodeTask(full(), ct)
		f.Add(b)
		r := task.NewResult(full(), task.Failed, time.Unix(1, 0))
		r.Output = task.Input(`{"choices":[{"index":0}]}`)
		r.Attempts = []task.Attempt{{Number: 1, DeviceID: "d", Class: task.ClassTimeout, At: time.Unix(1, 0)}}
		r.Error = &task.Error{Class: task.ClassTimeout, Message: "late"}
		b, _ = wire.EncodeResult(r, ct)
		f.Add(b)
	}
	f.Add([]byte("\xdd\xff\xff\xff\xff"))
	for _, b := range bombs(f) {
		if len(b) < 16<<10 {
			f.Add(b)
		}
	}
}

func FuzzDecodeTask(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var got *task.Task
		var err error
		fuzzing.Bound(t, len(b), func() { _, _ = wire.DecodeTask(b, "") })
		fuzzing.Bound(t, len(b), func() { got, err = wire.DecodeOwnTask(b, "") })
		if err != nil {
			return
		}
		got.Normalize(time.Unix(1, 0))
		if got.Validate(task.Limits{MaxInput: 1 << 20}) != nil {
			return
		}
		for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
			out, err := wire.EncodeTask(got, ct)
			if err != nil {
				continue // a year outside JSON's range
			}
			if _, err := wire.DecodeOwnTask(out, ct); err != nil {
				t.Fatalf("a valid task does not survive %s: %v", ct, err)
			}
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var got *task.Result
		var err error
		fuzzing.Bound(t, len(b), func() { got, err = wire.DecodeResult(b, "") })
		if err != nil {
			return
		}
		_ = got.Attempt()
		if len(got.Output) > 0 && task.CheckJSON(got.Output) != nil {
			t.Fatalf("decoding accepted an invalid output: %q", got.Output) // the recorder does not check it again
		}
		for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
			out, err := wire.EncodeResult(got, ct)
			if err != nil {
				continue // an invalid output, a year outside JSON's range
			}
			if _, err := wire.DecodeResult(out, ct); err != nil && len(out) <= 2*len(b)+1024 {
				t.Fatalf("a result does not survive %s: %v", ct, err)
			}
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	b, _ := wire.EncodeFrame(wire.FrameAssignments, []task.Assignment{{Task: *full()}})
	f.Add(b)
	e, _ := wire.EncodeFrame(wire.FrameEvents, []task.Event{task.Accepted(full(), task.Origin{Actor: "a"}, time.Unix(1, 0))})
	f.Add(e)
	w, _ := wire.EncodeFrame(wire.FrameBatches, []task.Batch{{ID: "b", Assignments: []task.Assignment{{Task: *full()}}}})
	f.Add(w)
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = wire.DecodeFrame[task.Assignment](wire.FrameAssignments, b) })
		fuzzing.Bound(t, len(b), func() { _, _ = wire.DecodeFrame[task.Event](wire.FrameEvents, b) })
		fuzzing.Bound(t, len(b), func() { _, _ = wire.DecodeFrame[task.Batch](wire.FrameBatches, b) })
	})
}
