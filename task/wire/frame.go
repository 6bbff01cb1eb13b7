package wire

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/task"
)

// MaxFrameEntries is how many entries one internal record may have; for events see
// [MaxFrameEvents].
const (
	MaxFrameEntries = 8192
	frameVersion    = 1
)

// EncodeFrame encodes entries of one kind as one internal record: [version, kind,
// [entries…]] in MessagePack. Readers check the kind, to distinguish a record in the wrong
// topic from a broken one.
func EncodeFrame[T any](kind string, entries []T) ([]byte, error) {
	if events, ok := any(entries).([]task.Event); ok && kind == FrameEvents {
		return encodeEvents(events)
	}
	if len(entries) > MaxFrameEntries {
		return nil, fmt.Errorf("encoding a frame of %s: %d entries are more than %d", kind, len(entries), MaxFrameEntries)
	}
	e := getEncoder()
	defer e.put()
	if err := encodeFrame(e.enc, kind, entries); err != nil {
		return nil, fmt.Errorf("encoding a frame of %s: %w", kind, err)
	}
	return bytes.Clone(e.buf.Bytes()), nil
}

func encodeFrame[T any](enc *msgpack.Encoder, kind string, entries []T) error {
	if err := enc.EncodeArrayLen(3); err != nil {
		return err
	}
	if err := enc.EncodeInt(frameVersion); err != nil {
		return err
	}
	if err := enc.EncodeString(kind); err != nil {
		return err
	}
	if err := enc.EncodeArrayLen(len(entries)); err != nil {
		return err
	}
	for i := range entries {
		if err := enc.Encode(&entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// DecodeFrame decodes what [EncodeFrame] wrote. The bytes may be untrusted: a broken
// record is an error, never a panic or a large allocation.
//
// Entries may alias b, which must not be changed afterwards.
func DecodeFrame[T any](kind string, b []byte) ([]T, error) {
	if _, ok := any((*T)(nil)).(*task.Event); ok && kind == FrameEvents {
		events := []task.Event{}
		err := DecodeEvents(b, func(i, n int) *task.Event {
			if i == 0 {
				events = make([]task.Event, n)
			}
			return &events[i]
		})
		if err != nil {
			return nil, err
		}
		out, _ := any(events).([]T) // T is Event
		return out, nil
	}
	memory := 0
	if err := checkWeighed(b, weigher[T](&memory)); err != nil {
		return nil, fmt.Errorf("reading a frame of %s: %w", kind, err)
	}
	if memory > 3*len(b)+512<<10 {
		return nil, fmt.Errorf("reading a frame of %s: its %d bytes would take %d bytes of memory, so Batchyard did not write it", kind, len(b), memory)
	}
	d := msgpack.GetDecoder()
	defer msgpack.PutDecoder(d)
	d.Reset(bytes.NewReader(b))
	var out []T
	err := safely(func() (err error) {
		out, err = decodeFrame[T](d, kind)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading a frame of %s: %w", kind, err)
	}
	return out, nil
}

func decodeFrame[T any](d *msgpack.Decoder, kind string) ([]T, error) {
	if n, err := d.DecodeArrayLen(); err != nil || n != 3 {
		return nil, fmt.Errorf("it is not a frame (%d parts)", n)
	}
	if v, err := d.DecodeInt(); err != nil || v != frameVersion {
		return nil, fmt.Errorf("its version is %d, this program reads version %d: update the older program", v, frameVersion)
	}
	if k, err := d.DecodeString(); err != nil || k != kind {
		return nil, fmt.Errorf("it is a frame of another kind than %s", kind)
	}
	n, err := d.DecodeArrayLen()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > MaxFrameEntries {
		return nil, fmt.Errorf("its %d entries are out of range 0 to %d", n, MaxFrameEntries)
	}
	out := make([]T, 0, n) // their size was checked
	for range n {
		var e T
		if err := d.Decode(&e); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Kinds of frames.
const (
	FrameEvents      = "events"
	FrameAssignments = "assignments"
	FrameBatches     = "batches"
)

// weigher estimates the memory that the entries of a frame take besides their strings: an
// empty array of one byte may become a struct of hundreds of bytes.
func weigher[T any](memory *int) func(depth int, h head) {
	var entry T
	size := int(unsafe.Sizeof(entry))
	const (
		frame   = 0 // depth of the frame itself and of the list of its entries
		entries = frame + 1
		element = 40  // bytes per element of a list of strings, as slices grow
		pair    = 100 // bytes per label
		attempt = 240
	)
	tasks := entries + 2 // depth of a task in an entry
	if _, ok := any(entry).(task.Batch); ok {
		tasks += 2 // batch, its assignments, assignment, task
	}
	return func(depth int, h head) {
		switch {
		case depth == entries:
			*memory += h.n * size
		case depth == tasks-2 && depth > entries: // the assignments of a batch, or its device
			*memory += h.n * int(unsafe.Sizeof(task.Assignment{}))
		case depth <= tasks:
		case h.kind == kindArray:
			*memory += h.n * element
		case depth == tasks+1:
			*memory += h.n * pair
		default:
			*memory += attempt
		}
	}
}
