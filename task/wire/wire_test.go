package wire_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

func full() *task.Task {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)
	return &task.Task{
		ID: "t-1", Tenant: "acme", Model: "m", Endpoint: task.EndpointChat, Input: task.Input(`{"messages":[]}`),
		Priority: task.High, Level: 3, Needs: []string{"gpu"}, SessionID: "s",
		Deadline: at.Add(time.Hour), NotBefore: at, MaxAttempts: 4, Degrade: true,
		Callback: &task.Callback{URL: "https://example.com/hook"}, Labels: map[string]string{"a": "b"},
		JobID: "j", CustomID: "c", TraceID: task.NewTraceID(), SubmittedAt: at,
		Progress: &task.Progress{Requeues: 2, Exclude: []string{"d"}, BackoffMS: 1500,
			Attempts: []task.Attempt{{Number: 1, DeviceID: "d", Class: task.ClassTimeout, At: at, Duration: 12}}},
	}
}

func sameTask(t *testing.T, want, got *task.Task) {
	t.Helper()
	w, err := json.Marshal(want)
	require.NoError(t, err)
	got.Deadline, got.NotBefore, got.SubmittedAt = got.Deadline.UTC(), got.NotBefore.UTC(), got.SubmittedAt.UTC()
	if p := got.Progress; p != nil {
		for i := range p.Attempts {
			p.Attempts[i].At = p.Attempts[i].At.UTC()
		}
	}
	g, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, string(w), string(g))
}

func TestTaskSurvivesBothFormatsAndFrames(t *testing.T) {
	for name, in := range map[string]*task.Task{"full": full(), "small": {ID: "x", Tenant: "t", Model: "m", Input: task.Input(`{}`)}} {
		for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
			b, err := wire.EncodeTask(in, ct)
			require.NoError(t, err)
			for _, header := range []string{ct, ""} {
				got, err := wire.DecodeOwnTask(b, header)
				require.NoError(t, err, "%s %s", name, ct)
				sameTask(t, in, got)
				require.Equal(t, in.Deadline.IsZero(), got.Deadline.IsZero())
			}
		}
		a := []task.Assignment{{Task: *in, Device: task.DeviceRef{ID: "d", URL: "http://d", Slots: 4}, Attempt: 2, Lease: task.Lease{Pool: "p", ID: "l"}}}
		b, err := wire.EncodeFrame(wire.FrameAssignments, a)
		require.NoError(t, err)
		got, err := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, b)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, a[0].Lease, got[0].Lease)
		sameTask(t, in, &got[0].Task)
		_, err = wire.DecodeFrame[task.Assignment](wire.FrameBatches, b)
		require.ErrorContains(t, err, "it is a frame of another kind than batches")
	}
}

// A MessagePack client sends plain maps: the input becomes JSON.
func TestMessagePackMapsBecomeJSON(t *testing.T) {
	b, err := msgpack.Marshal(map[string]any{
		"task_id": "a", "model": "m",
		"callback": map[string]any{"url": "https://example.com/x"},
		"deadline": "2026-01-31T12:00:00Z",
		"input": map[string]any{"messages": []any{map[string]any{"role": "user", "content": "hé \"x\"\u0000"}},
			"n": 3, "neg": -70000, "t": 0.5, "f": float32(2), "b": true, "nil": nil, "big": uint64(1) << 63, "bytes": []byte{1, 2}},
	})
	require.NoError(t, err)
	got, err := wire.DecodeTask(b, "")
	require.NoError(t, err)
	require.JSONEq(t, `{"messages":[{"role":"user","content":"hé \"x\"\u0000"}],"n":3,"neg":-70000,"t":0.5,"f":2,"b":true,"nil":null,"big":9223372036854775808,"bytes":"AQI="}`, string(got.Input))
	require.Equal(t, "https://example.com/x", got.Callback.URL)
	require.Equal(t, 2026, got.Deadline.Year())
}

// Outputs are not rewritten.
func TestOutputsAreKeptByteForByte(t *testing.T) {
	const output = "{ \"html\": \"<b>&amp;</b>\",\n \"n\": 1.0,\"z\":\"\\u003c \"} "
	r := task.NewResult(full(), task.Success, time.Now())
	r.Output = task.Input(output)
	for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		b, err := wire.EncodeResult(r, ct)
		require.NoError(t, err)
		got, err := wire.DecodeResult(b, ct)
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(output), strings.TrimSpace(string(got.Output))) //nolint:testifylint // byte for byte, as it came
		require.Equal(t, r.Attempts[0].DeviceID, got.Attempts[0].DeviceID)
		require.Equal(t, r.Labels, got.Labels)
	}
	large := *r
	large.Output = task.Input(`{"a":"` + strings.Repeat("<", 1<<20) + `"}`)
	b, err := wire.EncodeResult(&large, wire.ContentJSON)
	require.NoError(t, err)
	require.Less(t, len(b), 1<<20+8192, "an answer does not grow")
	large.Output = task.Input(`{"a":`)
	_, err = wire.EncodeResult(&large, wire.ContentJSON)
	require.Error(t, err)
}

// Decoding a result checks its output.
func TestOutputsAreCheckedByDecoding(t *testing.T) {
	r := task.NewResult(full(), task.Success, time.Now())
	for name, output := range map[string]string{
		"cut": `{"a":`, "no UTF-8": "{\"a\":\"\xff\"}", "too deep": strings.Repeat("[", task.MaxInputDepth+1) + strings.Repeat("]", task.MaxInputDepth+1), "two": `{} {}`,
	} {
		r.Output = task.Input(output)
		require.NoError(t, r.ValidateDecoded(), name)
		require.ErrorContains(t, r.Validate(), "output", name)
		b, err := wire.EncodeResult(r, wire.ContentMsgpack)
		require.NoError(t, err)
		_, err = wire.DecodeResult(b, "")
		require.ErrorContains(t, err, "output", name)

		r.Output = nil
		b, err = wire.EncodeResult(r, wire.ContentJSON)
		require.NoError(t, err)
		_, err = wire.DecodeResult([]byte(strings.TrimSuffix(string(b), "}")+`,"output":`+output+"}"), "")
		require.Error(t, err, name)
	}
}

// The deepest allowed nesting still works inside a record.
func TestDeepestNestingIsAccepted(t *testing.T) {
	nest := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	deepest := nest(task.MaxInputDepth)
	for _, ct := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		r := task.NewResult(full(), task.Success, time.Now())
		r.Output = task.Input(deepest)
		b, err := wire.EncodeResult(r, ct)
		require.NoError(t, err)
		res, err := wire.DecodeResult(b, ct)
		require.NoError(t, err)
		require.NoError(t, res.Validate())

		tk := full()
		tk.Input = task.Input(deepest)
		require.NoError(t, tk.Validate(task.Limits{}))
		b, err = wire.EncodeTask(tk, ct)
		require.NoError(t, err)
		got, err := wire.DecodeOwnTask(b, ct)
		require.NoError(t, err)
		require.NoError(t, got.Validate(task.Limits{}))
	}
	tk := full()
	tk.Input = task.Input(nest(task.MaxInputDepth + 1))
	require.ErrorContains(t, tk.Validate(task.Limits{}), "nested deeper")
}

// An accepted task can end: its result can be written and recorded.
func TestTasksThatCouldNotEndAreInvalid(t *testing.T) {
	millis := time.Unix(1_772_600_000_000, 0) // milliseconds sent as seconds: the year 58142
	for name, c := range map[string]struct {
		change func(*task.Task)
		want   string
	}{
		"submitted far away":      {func(tk *task.Task) { tk.SubmittedAt = millis }, "submitted_at"},
		"submitted long ago":      {func(tk *task.Task) { tk.SubmittedAt = time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC) }, "submitted_at"},
		"deadline far away":       {func(tk *task.Task) { tk.Deadline = millis }, "deadline"},
		"not before far away":     {func(tk *task.Task) { tk.NotBefore = millis }, "not_before"},
		"beyond, once in UTC":     {func(tk *task.Task) { tk.NotBefore = time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200)) }, "not_before"},
		"backoff far away":        {func(tk *task.Task) { tk.Progress.BackoffMS = 1 << 60 }, "progress"},
		"attempt far away":        {func(tk *task.Task) { tk.Progress.Attempts[0].At = millis }, "progress"},
		"attempt below one":       {func(tk *task.Task) { tk.Progress.Attempts[0].Number = -5 }, "progress"},
		"attempt out of range":    {func(tk *task.Task) { tk.Progress.Attempts[0].Number = 1 << 40 }, "progress"},
		"status out of range":     {func(tk *task.Task) { tk.Progress.Attempts[0].Status = -1 }, "progress"},
		"message too long":        {func(tk *task.Task) { tk.Progress.Attempts[0].Message = strings.Repeat("m", 5000) }, "progress"},
		"device that is no id":    {func(tk *task.Task) { tk.Progress.Attempts[0].DeviceID = "a\x00" }, "progress"},
		"invalid excluded device": {func(tk *task.Task) { tk.Progress.Exclude = []string{"a\xff"} }, "progress"},
		"requested too long":      {func(tk *task.Task) { tk.Progress.RequestedModel = strings.Repeat("m", 300) }, "progress"},
	} {
		t.Run(name, func(t *testing.T) {
			tk := full()
			require.NoError(t, tk.Validate(task.Limits{}))
			c.change(tk)
			require.ErrorContains(t, tk.Validate(task.Limits{}), c.want)
		})
	}
}

func TestInvalidRecordsAreExplained(t *testing.T) {
	nest := strings.Repeat("[", 4000)
	for name, c := range map[string]struct{ in, ct, want string }{
		"empty":            {"", "", "the record is empty"},
		"garbage":          {"\xff\x00garbage", "", "neither JSON nor MessagePack"},
		"text":             {"hello", "", "neither JSON nor MessagePack"},
		"other type":       {"{}", "text/csv", "content-type"},
		"cut JSON":         {`{"task_id":"a"`, "", "not valid JSON"},
		"deep JSON":        {`{"input":` + nest, "", "nested deeper"},
		"unknown field":    {`{"modle":"m"}`, "", "modle: unknown field"},
		"wrong type":       {`{"model":7}`, "", "model: a JSON number does not fit; send a string"},
		"bad time":         {`{"deadline":"tomorrow"}`, "", "deadline: it is not a time; send times as RFC 3339"},
		"number as time":   {`{"not_before":12}`, "", "not_before: it is not a time; send times as RFC 3339"},
		"msgpack time":     {"\x81\xa8deadline\xa8tomorrow", "", "deadline: a text is not a time"},
		"two values":       {`{"model":"m"} {}`, "", "not valid JSON"},
		"msgpack bomb":     {"\xdd\xff\xff\xff\xff", wire.ContentMsgpack, "does not fit into the 0 bytes"},
		"msgpack map bomb": {"\xdf\xff\xff\xff\xff", "", "does not fit into the 0 bytes"},
		"msgpack str bomb": {"\x81\xa2id\xdb\xff\xff\xff\xff", "", "does not fit"},
		"msgpack trailing": {"\x80\x80", "", "1 bytes follow"},
		"msgpack deep":     {"\x81\xa5input" + strings.Repeat("\x91", 4000) + "\xc0", "", "nested deeper"},
		"msgpack unknown":  {"\x81\xa5modle\xa1m", "", "modle: unknown field"},
		"msgpack ext":      {"\x81\xa5input\x81\xa1a\xd4\x05\x00", "", "extension value"},
		"msgpack type":     {"\x81\xa5model\x93\x01\x02\x03", "", "model: an array does not fit; send a string"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := wire.DecodeTask([]byte(c.in), c.ct)
			require.ErrorContains(t, err, c.want)
			var fe *task.FieldError
			require.ErrorAs(t, err, &fe)
			require.NotEmpty(t, fe.Remedy)
		})
	}
}
