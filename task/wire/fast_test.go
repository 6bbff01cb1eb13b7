package wire

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// fullResult has every member.
func fullResult() *task.Result {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)
	return &task.Result{
		TaskID: "0190f5a1-7b1c-7000-8000-3f1f5b7a9c11", Tenant: "acme", State: task.Success, Model: "llama-3.1-8b", RequestedModel: "llama-3.1-70b", Endpoint: task.EndpointChat,
		DeviceID: "gpu-7", Status: 200, Output: task.Input(`{"id":"c-1","choices":[{"index":0,"message":{"role":"assistant","content":"Yes: \"é\\n\" <b>"},"logprobs":null,"x":-1.5e+3}],"ok":true}`),
		Error:    &task.Error{Class: task.ClassTimeout, Message: "a line\nand \"another\" <one> \u2028"},
		Attempts: []task.Attempt{{Number: 1, Model: "m", DeviceID: "gpu-1", Class: task.ClassTimeout, Status: 504, Message: "late\t", At: at, Duration: 30_000}, {Number: 2, DeviceID: "gpu-7", At: at}},
		Usage:    task.Usage{InputTokens: 12, OutputTokens: 345}, Priority: task.Normal, JobID: "job-1", CustomID: "line-1", Labels: map[string]string{"team": "a", "": "\u00e9"},
		Callback: &task.Callback{URL: "https://example.com/hook?a=1&b=2"}, TraceID: "0af7651916cd43dd8448eb211c80319c",
		Generation: 2, Fingerprint: strings.Repeat("0f", 32), SubmittedAt: at, AssignedAt: at.Add(time.Millisecond), StartedAt: at.Add(time.Second), FinishedAt: at.Add(time.Minute),
	}
}

// TestFastResultIsUsed: the fast reader accepts what Batchyard writes, and what others
// write, too. Otherwise only the CPU time would show. It also finds fields that the fast
// reader does not know.
func TestFastResultIsUsed(t *testing.T) {
	t.Parallel()
	all := fullResult()
	for i := range reflect.TypeFor[task.Result]().NumField() {
		f := reflect.TypeFor[task.Result]().Field(i)
		require.True(t, f.Tag.Get("json") == "-" || !reflect.ValueOf(all).Elem().Field(i).IsZero(), "%s: give it a value", f.Name)
	}
	small := &task.Result{TaskID: "t", Tenant: "acme", State: task.Cancelled}
	for _, r := range []*task.Result{all, small, task.NewResult(&task.Task{ID: "t", Tenant: "a", Model: "m"}, task.Expired, time.Now())} {
		b, err := EncodeResult(r, ContentJSON)
		require.NoError(t, err)
		q := fastResult(b)
		require.NotNil(t, q, "%s", b)
		slow, err := slowResult(b)
		require.NoError(t, err)
		require.Equal(t, slow, q)
		require.Equal(t, r.Output, q.Output)
	}
	for _, text := range []string{
		" { \"task_id\" : \"t\" ,\n\t\"output\": { } , \"status\":-7,\"state\":\"FAILED\" }\r\n",
		`{"output":null,"attempts":[],"labels":{},"error":{},"callback":{},"usage":{}}`,
		`{"finished_at":"2026-01-31T12:00:00.5+01:00","output":[1,"\ud83d\ude00"]}`,
		`{}`,
	} {
		q := fastResult([]byte(text))
		require.NotNil(t, q, text)
		slow, err := slowResult([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, slow, q, text)
	}
}

// oddResults are results that the fast reader must leave to the slow one, or read exactly
// like it.
func oddResults() []string {
	deep := func(n int) string { return `{"output":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	return []string{
		`{"task_id":"a","task_id":"b"}`, `{"Task_ID":"a"}`, `{"task_id":null}`, `{"new":1}`, `{"task\u005fid":"a"}`, `{"task_id":"a",}`, `{"task_id":"a"} x`, `{"task_id":"a"`,
		`{,}`, `{"task_id" "a"}`, `[]`, `"a"`, `{"task_id":7}`, "{\"task_id\":\"a\x00\"}", "{\"task_id\":\"\xff\"}", `{"task_id":"\x"}`, `{"task_id":"\u12"}`, `{"task_id":"\ud800"}`,
		`{"task_id":"\ud83d\ude00"}`, `{"task_id":"\u0000\/\b\f\n\r\t\\\""}`, `{"status":1.0}`, `{"status":1e2}`, `{"status":01}`, `{"status":-0}`, `{"status":-}`, `{"status":999999999999999999999}`,
		`{"status":999999999999999999}`, `{"usage":{"input_tokens":-5,"x":1}}`, `{"usage":{"input_tokens":1,"input_tokens":2}}`, `{"labels":{"a":"1","a":"2"}}`, `{"labels":{"a":"1"},"labels":{"b":"2"}}`,
		`{"usage":{"input_tokens":1},"usage":{"output_tokens":2}}`, `{"error":{"class":"a"},"error":{"message":"b"}}`, `{"attempts":[{"number":1}],"attempts":[{"device_id":"d"}]}`, `{"labels":{"a":1}}`, `{"labels":null}`,
		`{"error":null}`, `{"error":[]}`, `{"attempts":{}}`, `{"attempts":[null]}`, `{"attempts":[{"at":"2026-02-30T00:00:00Z"}]}`, `{"attempts":[{},{"number":3}]}`, `{"attempts":[{}{}]}`,
		`{"finished_at":"2026-01-31 12:00:00Z"}`, `{"finished_at":"2026-01-31T12:00:00,5Z"}`, `{"finished_at":"2026-01-31T12:00:00+25:00"}`, `{"finished_at":"2026-01-31T12:00:00\u005a"}`, `{"finished_at":""}`, `{"finished_at":null}`,
		`{"output":{"a":1,}}`, `{"output":tru}`, `{"output":+1}`, `{"output":1.}`, `{"output":.5}`, `{"output":1e}`, `{"output":[1 2]}`, `{"output":}`, `{"output":"a` + "\n" + `"}`, `{"output":-}`, `{"output":[}`,
		deep(task.MaxInputDepth), deep(task.MaxInputDepth + 1), `{"output":1,"output":2}`, `{"labels":{"output":"x"},"task_id":"after"}`, `{"task_id":"\"output\"","output":"\"output\"","tenant":"behind"}`,
		`{"attempts":[` + strings.Repeat(`{},`, maxFastList) + `{}]}`, `{"attempts":[` + strings.Repeat(`{},`, maxValues) + `{}]}`, `{"task_id":"` + strings.Repeat("x", maxFastRest) + `"}`,
		`{"output":1,"task_id":"` + strings.Repeat(`\n`, maxRest/2) + `"}`, strings.Repeat(" ", 100) + "{}" + strings.Repeat(" ", maxFastRest),
	}
}

// sameAsSlow checks that the fast reader, if it returns a result, returns the same as the
// slow one.
func sameAsSlow(t testing.TB, b []byte) {
	t.Helper()
	q := fastResult(b)
	if q == nil {
		return
	}
	slow, err := slowResult(b)
	require.NoError(t, err, "the fast reader accepts what the slow one refuses")
	require.Equal(t, slow, q)
	require.True(t, len(q.Output) == 0 || strictjson.CheckSlowly(q.Output, task.MaxInputDepth) == nil, "the output does not pass CheckJSON")
}

func TestFastResultAgreesWithSlow(t *testing.T) {
	t.Parallel()
	for _, text := range oddResults() {
		sameAsSlow(t, []byte(text))
	}
	full, err := EncodeResult(fullResult(), ContentJSON)
	require.NoError(t, err)
	for i := range full { // at each byte: truncate there, replace it
		sameAsSlow(t, full[:i])
		for _, c := range []byte("\"\\{}[],: 0x\x00\xff") {
			b := append([]byte{}, full...)
			b[i] = c
			sameAsSlow(t, b)
		}
	}
	rapid.Check(t, func(t *rapid.T) { // any text
		r := fullResult()
		r.JobID, r.Error.Message = rapid.String().Draw(t, "job"), rapid.String().Draw(t, "message")
		r.Labels[rapid.String().Draw(t, "key")] = rapid.String().Draw(t, "value")
		b, err := EncodeResult(r, ContentJSON)
		require.NoError(t, err)
		q := fastResult(b)
		require.NotNil(t, q)
		require.Equal(t, r, q)
	})
}

// FuzzQuickResult: if the fast reader returns a result, the slow one returns the same.
func FuzzQuickResult(f *testing.F) {
	b, err := EncodeResult(fullResult(), ContentJSON)
	require.NoError(f, err)
	f.Add(b)
	for _, text := range oddResults() {
		if len(text) < 16<<10 {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = DecodeResult(b, ContentJSON) })
		sameAsSlow(t, b)
	})
}

func sameSoundness(t testing.TB, b []byte) {
	t.Helper()
	for _, most := range []int{0, 1, 3, task.MaxInputDepth} {
		if slow, quick := strictjson.CheckSlowly(b, most) == nil, strictjson.Valid(b, most); slow != quick {
			t.Fatalf("%q with at most %d levels: %v, but %v for the fast check", b, most, slow, quick)
		}
	}
}

// TestSoundJSON tries every byte at every position of an eight-byte word and around it.
func TestSoundJSON(t *testing.T) {
	t.Parallel()
	for _, text := range oddResults() {
		sameSoundness(t, []byte(text))
	}
	for c := range 256 {
		for before := range 18 {
			for _, after := range []string{"", `"`, `n"`, `" `, `" 1`, `12345678"`} {
				sameSoundness(t, fmt.Appendf(nil, `"%s%s%s`, strings.Repeat("x", before), []byte{byte(c)}, after))
			}
		}
		sameSoundness(t, []byte{byte(c)})
		sameSoundness(t, fmt.Appendf(nil, `[1%c]`, c))
		sameSoundness(t, append([]byte(`[1`), byte(c), '2', ']'))
	}
}

// FuzzSoundJSON: both checks accept the same.
func FuzzSoundJSON(f *testing.F) {
	for _, text := range oddResults() {
		if len(text) < 16<<10 {
			f.Add([]byte(text))
		}
	}
	for _, text := range []string{`-0.5e-7`, `"\u00e9é"`, `[[[]],{"a":{}}]`, ` null `, ``, `nul`, "\"\x1f\"", "\"\x7f\"", "\"\u2028\""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) { sameSoundness(t, b) })
}

// BenchmarkDecodeResult decodes and checks a typical result as the recorder does; ratio is
// how much longer it takes without the fast reader.
func BenchmarkDecodeResult(b *testing.B) {
	r := fullResult()
	r.Error, r.RequestedModel, r.Callback, r.Labels, r.Attempts = nil, "", nil, nil, r.Attempts[1:]
	text, err := EncodeResult(r, ContentJSON)
	require.NoError(b, err)
	slowly := func() time.Duration {
		begin := time.Now()
		r, err := slowResult(text)
		if err != nil || r.ValidateDecoded() != nil || strictjson.CheckSlowly(r.Output, task.MaxInputDepth) != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r, err := DecodeResult(text, ContentJSON); err != nil || r.ValidateDecoded() != nil {
			b.Fatal(err)
		}
	}
	least := slowly()
	for range 200 {
		least = min(least, slowly())
	}
	b.ReportMetric(float64(least)/(float64(b.Elapsed())/float64(b.N)), "ratio")
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		for n := range 20 {
			s := strings.Repeat("x", n) + string([]byte{byte(c)}) + "a name"
			require.Equal(t, c >= ' ' && c < 0x7f, task.Plain(s), s)
		}
	}
	require.True(t, task.Plain(""))
}

// TestQuickTime compares with package time around every boundary.
func TestQuickTime(t *testing.T) {
	t.Parallel()
	same := func(t require.TestingT, text string) {
		got, ok := fastTime([]byte(text))
		var want time.Time
		if ok && (want.UnmarshalText([]byte(text)) != nil || want != got) { // the location must be equal, too
			require.Equal(t, want, got, text)
			require.Fail(t, "accepts a time that package time refuses", text)
		}
	}
	for _, year := range []int{0, 1, 1900, 1999, 2000, 2024, 2026, 9999} {
		for month := range 14 {
			for day := range 33 {
				same(t, fmt.Sprintf("%04d-%02d-%02dT23:59:59.000001Z", year, month, day))
			}
		}
	}
	for i, good := range []string{"2026-01-31T12:00:00Z", "2026-12-31T23:59:59.123456789Z", "2026-02-28T00:00:00.5Z"} {
		_, ok := fastTime([]byte(good))
		require.True(t, ok, i)
		for at := range good {
			for c := range 256 {
				same(t, good[:at]+string([]byte{byte(c)})+good[at+1:])
				same(t, good[:at]+string([]byte{byte(c)})+good[at:])
			}
			same(t, good[:at])
			same(t, good[:at]+good[at+1:])
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(-62167219200, 253402300799).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
		text := at.Format(time.RFC3339Nano)
		same(t, text)
		_, ok := fastTime([]byte(text))
		require.True(t, ok || at.Month() == time.February && at.Day() > 28, text)
	})
}
