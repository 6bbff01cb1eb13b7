package task

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

// drawEvent sets every field, in the order of the struct.
func drawEvent(t *rapid.T) Event {
	var e Event
	v := reflect.ValueOf(&e).Elem()
	for i := 1; i < v.NumField(); i++ { // without the marker
		name := v.Type().Field(i).Name
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			if rapid.Bool().Draw(t, name+" is known") {
				f.Set(reflect.ValueOf(time.Unix(rapid.Int64Range(-1<<35, 1<<35).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns")).UTC()))
			}
		case []byte:
			if rapid.Bool().Draw(t, name+" is there") {
				f.SetBytes(rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, name))
			}
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(rapid.StringN(0, 300, -1).Draw(t, name))
			default:
				f.SetInt(rapid.Int64().Draw(t, name))
			}
		}
	}
	return e
}

// TestEventsOnTheWire compares our encoding and decoding of events with the library's, in
// both directions.
func TestEventsOnTheWire(t *testing.T) {
	t.Parallel()
	require.Equal(t, eventFields, reflect.TypeFor[Event]().NumField()-1, "new field: encode it, decode it, and keep eventFieldsMin")
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.SliceOfN(rapid.Custom(drawEvent), 0, 4).Draw(t, "events")
		ours, err := EncodeFrame(FrameEvents, events)
		require.NoError(t, err)
		var theirs bytes.Buffer
		enc := msgpack.NewEncoder(&theirs)
		require.NoError(t, encodeFrame(enc, FrameEvents, events))

		for name, wire := range map[string][]byte{"ours": ours, "the library's": theirs.Bytes()} {
			got, err := DecodeFrame[Event](FrameEvents, wire)
			require.NoError(t, err, name)
			require.Len(t, got, len(events))
			lib, err := decodeFrame[Event](msgpack.NewDecoder(bytes.NewReader(wire)), FrameEvents)
			require.NoError(t, err, name)
			for i := range events {
				lib[i].Time, lib[i].SubmittedAt, lib[i].Deadline = lib[i].Time.UTC(), lib[i].SubmittedAt.UTC(), lib[i].Deadline.UTC()
				require.Equal(t, events[i], got[i], name)
				require.Equal(t, events[i], lib[i], name)
			}
		}
	})
}

func TestEventsOfOtherVersions(t *testing.T) {
	t.Parallel()
	e := Event{Time: time.Unix(1, 0).UTC(), Action: TaskAccepted, Outcome: OutcomeOK, Tenant: "acme", ActorType: ActorStage, ActorID: "a stage with a name", TaskID: "t1", Detail: []byte(`{"a":1}`)}
	newer := append([]byte{0x93, frameVersion}, appendStr(nil, FrameEvents)...)
	newer = append(newer, 0x91)
	one := appendEvent(nil, &e)
	one[2] += 2
	newer = append(append(newer, one...), append([]byte{0x81, 0xa1, 'k', 0x92, 1, 2}, appendStr(nil, "a field of a newer version")...)...)
	got, err := DecodeFrame[Event](FrameEvents, newer)
	require.NoError(t, err)
	require.Equal(t, []Event{e}, got)

	for name, c := range map[string]struct {
		with func([]byte) []byte
		want string
	}{
		"cut":             {func(b []byte) []byte { return b[:len(b)-1] }, "event 0"},
		"too few fields":  {func(b []byte) []byte { b[bytes.IndexByte(b, 0xdc)+5]--; return b }, "update the program that wrote it"},
		"more than fit":   {func(b []byte) []byte { b[10], b[11] = 3, 0; return b }, "more than fit"},
		"another version": {func(b []byte) []byte { b[1]++; return b }, "update the older program"},
		"something after": {func(b []byte) []byte { return append(b, 0) }, "1 bytes follow"},
		"another kind":    {func(b []byte) []byte { b[3] = 'x'; return b }, "frame of another kind"},
		"empty":           {func([]byte) []byte { return nil }, "it ends in the middle"},
	} {
		b, err := EncodeFrame(FrameEvents, []Event{e})
		require.NoError(t, err)
		_, err = DecodeFrame[Event](FrameEvents, c.with(b))
		require.ErrorContains(t, err, c.want, name)
	}
}

// anyEvents decodes a frame of events by reflection, without the fast paths.
func anyEvents(b []byte) ([]Event, error) {
	r := &fieldReader{walker: walker{b: b}, text: string(b)}
	if r.array() != 3 || r.anyInt() != frameVersion || r.anyStr() != FrameEvents {
		r.fail("it is not a frame")
	}
	n := r.array()
	if r.err != nil || n > MaxFrameEvents || n > len(b)/minEventBytes {
		return nil, fmt.Errorf("reading the head: %w", r.err)
	}
	out := make([]Event, n)
	for i := range out {
		v := reflect.ValueOf(&out[i]).Elem()
		fields := r.array()
		for k := 1; k < v.NumField() && k <= fields; k++ {
			switch f := v.Field(k); f.Interface().(type) {
			case time.Time:
				f.Set(reflect.ValueOf(r.anyTime()))
			case []byte:
				f.SetBytes(r.anyBin())
			default:
				if f.Kind() == reflect.String {
					f.SetString(r.anyStr())
				} else {
					f.SetInt(r.anyInt())
				}
			}
		}
		for range fields - eventFields {
			if err := r.value(2); r.err != nil || err != nil {
				return nil, fmt.Errorf("reading unknown fields: %w", errors.Join(r.err, err))
			}
		}
		if r.err != nil || fields < eventFieldsMin {
			return nil, fmt.Errorf("reading %d fields: %w", fields, r.err)
		}
	}
	if r.at != len(b) {
		return nil, errors.New("something follows")
	}
	return out, nil
}

func sameEvents(t testing.TB, b []byte) {
	t.Helper()
	want, failed := anyEvents(b)
	got, err := DecodeFrame[Event](FrameEvents, b)
	if (failed == nil) != (err == nil) || err == nil && !reflect.DeepEqual(want, got) {
		t.Fatalf("%x decodes to %+v (%v), want %+v (%v)", b, got, err, want, failed)
	}
	if n := CountEvents(b); err == nil && n != len(got) || n > MaxFrameEvents {
		t.Fatalf("%x announces %d events and has %d", b, n, len(got))
	}
}

// TestQuickFields truncates and changes a frame at each byte: the fast paths agree with
// the general ones.
func TestQuickFields(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_772_600_000, 5).UTC()
	b, err := EncodeFrame(FrameEvents, []Event{{Time: at, Action: TaskAccepted, TaskID: "a task", UserAgent: string(bytes.Repeat([]byte("x"), 40)), Attempt: 1, Duration: 1 << 40, TokensIn: -1,
		InputSHA256: bytes.Repeat([]byte{7}, 32), Detail: []byte(`{}`), Deadline: time.Unix(1<<35, 999_999_999).UTC(), CallbackURL: string(bytes.Repeat([]byte("y"), 300))}})
	require.NoError(t, err)
	sameEvents(t, b)
	for i := range b {
		sameEvents(t, b[:i])
		for c := range 256 {
			if (c < 0xc0 || c > 0xe0) && c%8 != 7 { // the headers of values, and some bytes of every other kind
				continue
			}
			v := bytes.Clone(b)
			v[i] = byte(c)
			sameEvents(t, v)
		}
	}
}

// FuzzDecodeEvents: the fast paths agree with the general ones.
func FuzzDecodeEvents(f *testing.F) {
	for n := range 3 {
		b, err := EncodeFrame(FrameEvents, []Event{{Time: time.Unix(1, 2).UTC(), Action: TaskQueued, Tenant: "acme", Attempt: -1, Detail: []byte(`{}`)}, {}}[:n])
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = DecodeFrame[Event](FrameEvents, b) })
		sameEvents(t, b)
	})
}
