package wire

import (
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

// fullTask has every member.
func fullTask() *task.Task {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)
	return &task.Task{
		ID: "0190f5a1-7b1c-7000-8000-3f1f5b7a9c11", Tenant: "acme", Model: "llama-3.1-8b", Endpoint: task.EndpointChat,
		Input:    task.Input(`{"messages":[{"role":"user","content":"Say \"yes\", \u00e9\n <b>"}],"temperature":0.5,"stop":null}`),
		Priority: task.High, Level: 3, Needs: []string{"gpu", "eu \u2028"}, DependsOn: []string{"t-0"}, SessionID: "s\n1", Deadline: at.Add(time.Hour), NotBefore: at,
		MaxAttempts: 4, Degrade: true, Callback: &task.Callback{URL: "https://example.com/hook?a=1&b=2"}, Labels: map[string]string{"team": "a", "": "\u00e9"},
		JobID: "job-1", CustomID: "line-1", TraceID: "0af7651916cd43dd8448eb211c80319c", SubmittedAt: at,
		Progress: &task.Progress{Requeues: 2, Generation: 1, Attempts: fullResult().Attempts, Exclude: []string{"gpu-1"}, BackoffMS: 1500, RequestedModel: "llama-3.1-70b", Moved: true, Sent: []task.Header{{Key: "k", Value: []byte{0, 0xff}}}},
	}
}

// TestFastTaskIsUsed: the fast reader accepts every member of a task. Otherwise only the CPU
// time would show.
func TestFastTaskIsUsed(t *testing.T) {
	t.Parallel()
	all := fullTask()
	for _, v := range []reflect.Value{reflect.ValueOf(all).Elem(), reflect.ValueOf(all.Progress).Elem()} {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			require.True(t, f.Name == "_msgpack" || f.Tag.Get("json") == "-" || !v.Field(i).IsZero(), "%s: give it a value", f.Name)
		}
	}
	for _, want := range []*task.Task{all, {Model: "m", Input: task.Input(`{}`)}} {
		b, err := EncodeTask(want, ContentJSON)
		require.NoError(t, err)
		fast := fastTask(b)
		require.NotNil(t, fast, "%s", b)
		slow, err := slowTask(b, ownTaskShape)
		require.NoError(t, err)
		require.Equal(t, slow, fast)
		require.Equal(t, want.ID, fast.ID)
	}
	for _, text := range []string{
		" { \"model\" : \"m\" ,\n\t\"input\": { } , \"level\":-7,\"degrade\": false }\r\n",
		`{"input":null,"needs":[],"labels":{},"callback":{},"progress":{"attempts":[],"exclude":[]}}`,
		`{"deadline":"2026-01-31T12:00:00.5+01:00","input":[1,"\ud83d\ude00"]}`,
		`{"input":"text","model":"after the input"}`,
		`{}`,
	} {
		fast := fastTask([]byte(text))
		require.NotNil(t, fast, text)
		slow, err := slowTask([]byte(text), ownTaskShape)
		require.NoError(t, err, text)
		require.Equal(t, slow, fast, text)
	}
}

// oddTasks are tasks that the fast reader must leave to the slow one, or read exactly like
// it.
func oddTasks() []string {
	deep := func(n int) string { return `{"input":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	return []string{
		`{"model":"a","model":"b"}`, `{"Model":"a"}`, `{"model":null}`, `{"modle":"a"}`, `{"mod\u0065l":"a"}`, `{"model":"a",}`, `{"model":"a"} x`, `{"model":"a"`, `null`, `[]`, `"a"`, `{"model":7}`,
		"{\"model\":\"a\x00\"}", "{\"model\":\"\xff\"}", "{\"input\":{\"a\":\"\xff\"}}", `{"model":"\ud800"}`, `{"model":"\ud83d\ude00"}`, `{"model":"\u0000\/\b\f\n\r\t\\\""}`,
		`{"level":1.0}`, `{"level":1e2}`, `{"level":01}`, `{"level":-0}`, `{"level":-}`, `{"level":99999999999999999999}`, `{"level":999999999999999999}`, `{"level":"1"}`, `{"level":null}`,
		`{"degrade":1}`, `{"degrade":null}`, `{"degrade":tru}`, `{"degrade":truex}`, `{"degrade":"true"}`, `{"needs":null}`, `{"needs":{}}`, `{"needs":[null]}`, `{"needs":[1]}`, `{"needs":["a" "b"]}`, `{"needs":["a",]}`,
		`{"needs":["a"],"needs":["b"]}`, `{"labels":{"a":1}}`, `{"labels":null}`, `{"labels":{"a":"1","a":"2"}}`, `{"labels":{"a":"1"},"labels":{"b":"2"}}`, `{"callback":null}`, `{"callback":{"url":"a","x":1}}`, `{"callback":"a"}`,
		`{"callback":{"url":"a"},"callback":{}}`, `{"deadline":"tomorrow"}`, `{"deadline":12}`, `{"deadline":null}`, `{"deadline":""}`, `{"not_before":"2026-02-30T00:00:00Z"}`, `{"submitted_at":"2026-01-31T12:00:00,5Z"}`,
		`{"input":{"a":1,}}`, `{"input":tru}`, `{"input":}`, `{"input":[}`, `{"input":1,"input":2}`, `{"Input":{}}`, `{"input":{}}{}`, deep(task.MaxInputDepth), deep(task.MaxInputDepth + 1),
		`{"progress":null}`, `{"progress":{"x":1}}`, `{"progress":{"requeues":1},"progress":{"moved":true}}`, `{"progress":{"attempts":[{"number":1,"number":2}]}}`, `{"progress":{"moved":"yes"}}`,
		`{"needs":[` + strings.Repeat(`"",`, maxFastList) + `""]}`, `{"needs":[` + strings.Repeat(`"",`, maxValues) + `""]}`, `{"model":"` + strings.Repeat("x", maxFastRest) + `"}`,
		`{"input":1,"model":"` + strings.Repeat(`\n`, maxRest/2) + `"}`, strings.Repeat(" ", 100) + "{}" + strings.Repeat(" ", maxFastRest),
	}
}

// sameTaskAsSlow checks that the fast reader, if it returns a task, returns the same as the
// slow one.
func sameTaskAsSlow(t testing.TB, b []byte) {
	t.Helper()
	fast := fastTask(b)
	if fast == nil {
		return
	}
	slow, err := slowTask(b, ownTaskShape)
	require.NoError(t, err, "the fast reader accepts what the slow one refuses")
	require.Equal(t, slow, fast)
	require.True(t, len(fast.Input) == 0 || strictjson.CheckSlowly(fast.Input, task.MaxInputDepth) == nil, "the input does not pass CheckJSON")
}

func TestFastTaskAgreesWithSlow(t *testing.T) {
	t.Parallel()
	for _, text := range oddTasks() {
		sameTaskAsSlow(t, []byte(text))
		_, err := DecodeTask([]byte(text), ContentJSON)
		_, want := slowTask([]byte(text), taskShape)
		require.Equal(t, want, err, text)
	}
	full, err := EncodeTask(fullTask(), ContentJSON)
	require.NoError(t, err)
	for i := range full { // at each byte: truncate there, replace it
		sameTaskAsSlow(t, full[:i])
		for _, c := range []byte("\"\\{}[],: 0x\x00\xff") {
			b := append([]byte{}, full...)
			b[i] = c
			sameTaskAsSlow(t, b)
		}
	}
	rapid.Check(t, func(t *rapid.T) { // any text
		one := fullTask()
		one.JobID, one.Needs[0] = rapid.String().Draw(t, "job"), rapid.String().Draw(t, "need")
		one.Labels[rapid.String().Draw(t, "key")] = rapid.String().Draw(t, "value")
		b, err := EncodeTask(one, ContentJSON)
		require.NoError(t, err)
		fast := fastTask(b)
		require.NotNil(t, fast)
		one.Input = fast.Input // the encoder rewrites < and >
		require.Equal(t, one, fast)
	})
}

// FuzzQuickTask: if the fast reader returns a task, the slow one returns the same.
func FuzzQuickTask(f *testing.F) {
	b, err := EncodeTask(fullTask(), ContentJSON)
	require.NoError(f, err)
	f.Add(b)
	for _, text := range oddTasks() {
		if len(text) < 16<<10 {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = DecodeTask(b, ContentJSON) })
		sameTaskAsSlow(t, b)
	})
}

// BenchmarkDecodeTask decodes a typical submitted task; ratio is how much longer it takes
// without the fast reader.
func BenchmarkDecodeTask(b *testing.B) {
	text := []byte(`{"task_id":"0190f5a1-7b1c-7000-8000-3f1f5b7a9c11","model":"llama-3.1-8b","priority":"high","input":{"messages":[{"role":"system","content":"You are a helpful assistant."},` +
		`{"role":"user","content":"` + strings.Repeat("Summarise this text, please. ", 30) + `"}],"max_tokens":256,"temperature":0.2},"labels":{"team":"search"},"custom_id":"line-17"}`)
	least := func(decode func([]byte) (*task.Task, error)) time.Duration {
		least := time.Hour
		for range 500 {
			begin := time.Now()
			if _, err := decode(text); err != nil {
				b.Fatal(err)
			}
			least = min(least, time.Since(begin))
		}
		return least
	}
	fast := func(text []byte) (*task.Task, error) { return DecodeTask(text, ContentJSON) }
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := fast(text); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(least(func(b []byte) (*task.Task, error) { return slowTask(b, taskShape) }))/float64(least(fast)), "ratio")
}
