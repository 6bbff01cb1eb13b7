package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// pair is a member of a map that is packed by hand, because no library writes a name twice.
type pair struct {
	name  string
	value any
}

func pack(t testing.TB, members ...pair) []byte {
	t.Helper()
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	require.NoError(t, e.EncodeMapLen(len(members)))
	for _, m := range members {
		require.NoError(t, e.EncodeString(m.name))
		if raw, ok := m.value.([]pair); ok {
			require.NoError(t, e.Encode(msgpack.RawMessage(pack(t, raw...))))
			continue
		}
		require.NoError(t, e.Encode(m.value))
	}
	return b.Bytes()
}

func requireField(t *testing.T, err error, field, problem, remedy string) {
	t.Helper()
	var fe *task.FieldError
	require.ErrorAs(t, err, &fe)
	require.Equal(t, field, fe.Field, err)
	require.Contains(t, fe.Problem, problem)
	require.Contains(t, fe.Remedy, remedy)
}

// Names are exact and there once, in both formats and in every object of a task.
func TestNamesAreExactAndThereOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		json                   string
		packed                 []pair
		field, problem, remedy string
	}{
		{`{"tenant":"a","Tenant":"b"}`, []pair{{"tenant", "a"}, {"Tenant", "b"}}, "Tenant", "unknown field", "did you mean `tenant`?"},
		{`{"TASK_ID":"a"}`, []pair{{"TASK_ID", "a"}}, "TASK_ID", "unknown field", "did you mean `task_id`?"},
		{`{"taskId":"a"}`, []pair{{"taskId", "a"}}, "taskId", "unknown field", "did you mean `task_id`?"},
		{`{"custom-id":"a"}`, []pair{{"custom-id", "a"}}, "(a field)", "unknown field", "did you mean `custom_id`?"},
		{`{"modle":"m"}`, []pair{{"modle", "m"}}, "modle", "unknown field", "did you mean `model`?"},
		{`{"job":"j"}`, []pair{{"job", "j"}}, "job", "unknown field", "did you mean `job_id`?"},
		{`{"payload":{}}`, []pair{{"payload", map[string]int{}}}, "payload", "unknown field", "remove it"},
		{`{"tenant":"a","tenant":"b"}`, []pair{{"tenant", "a"}, {"tenant", "b"}}, "tenant", "twice", "once"},
		{`{"tenant":"a","tenant":"a"}`, []pair{{"tenant", "a"}, {"tenant", "a"}}, "tenant", "twice", "once"},
		{`{"input":{},"input":{}}`, []pair{{"input", []pair{}}, {"input", []pair{}}}, "input", "twice", "once"},
		{`{"level":1,"model":"m","level":null}`, []pair{{"level", 1}, {"model", "m"}, {"level", nil}}, "level", "twice", "once"},
		{`{"labels":{"team":"a","team":"b"}}`, []pair{{"labels", []pair{{"team", "a"}, {"team", "b"}}}}, "labels.team", "twice", "once"},
		{`{"labels":{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":"","9":"","10":"","10":""}}`,
			[]pair{{"labels", []pair{{"1", ""}, {"2", ""}, {"3", ""}, {"4", ""}, {"5", ""}, {"6", ""}, {"7", ""}, {"8", ""}, {"9", ""}, {"10", ""}, {"10", ""}}}}, "labels.10", "twice", "once"},
		{`{"callback":{"url":"http://a","url":"http://b"}}`, []pair{{"callback", []pair{{"url", "http://a"}, {"url", "http://b"}}}}, "callback.url", "twice", "once"},
		{`{"callback":{"URL":"http://a"}}`, []pair{{"callback", []pair{{"URL", "http://a"}}}}, "callback.URL", "unknown field", "did you mean `url`?"},
		{`{"callback":{"secret":"s"}}`, []pair{{"callback", []pair{{"secret", "s"}}}}, "callback.secret", "unknown field", "remove it"},
		{`{"mod\u0065l":"m","model":"m"}`, nil, "model", "twice", "once"},
		{"{\"ta\u017fk_id\":\"a\"}", []pair{{"ta\u017fk_id", "a"}}, "(a field)", "unknown field", "did you mean `task_id`?"}, // ſ, which encoding/json takes for s
		{`{"progress":{"requeues":1}}`, []pair{{"progress", []pair{{"requeues", 1}}}}, "progress", "internal state", "omit it"},
		{`{"progress":{}}`, []pair{{"progress", []pair{}}}, "progress", "internal state", "omit it"},
		{`{"progress":null}`, []pair{{"progress", nil}}, "progress", "internal state", "omit it"},
		{`{"Progress":{"requeues":1}}`, []pair{{"Progress", []pair{{"requeues", 1}}}}, "Progress", "unknown field", "remove it"},
		{`{"generation":2}`, []pair{{"generation", 2}}, "generation", "unknown field", "remove it"},
		{`{"` + strings.Repeat("x", 300) + `":1}`, []pair{{strings.Repeat("x", 300), 1}}, "(a field)", "unknown field", "remove it"},
	} {
		_, err := wire.DecodeTask([]byte(c.json), wire.ContentJSON)
		requireField(t, err, c.field, c.problem, c.remedy)
		if c.packed != nil {
			_, err = wire.DecodeTask(pack(t, c.packed...), wire.ContentMsgpack)
			requireField(t, err, c.field, c.problem, c.remedy)
		}
	}
	for _, own := range [][]byte{[]byte(`{"progress":{"requeues":1}}`), pack(t, pair{"progress", []pair{{"requeues", 1}}})} {
		got, err := wire.DecodeOwnTask(own, "")
		require.NoError(t, err)
		require.Equal(t, 1, got.Requeues(), "what Batchyard wrote itself has progress")
	}
	for _, own := range [][]byte{[]byte(`{"progress":{"attempts":[{"number":1,"number":2}]}}`), pack(t, pair{"progress", []pair{{"attempts", []any{msgpack.RawMessage(pack(t, pair{"number", 1}, pair{"number", 2}))}}}})} {
		_, err := wire.DecodeOwnTask(own, "")
		requireField(t, err, "progress.attempts.number", "twice", "once")
	}
}

// A result may have fields of a newer version, but no field in other letters, and none twice.
func TestNamesOfResults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		json           string
		packed         []pair
		field, problem string
	}{
		{`{"task_id":"a","task_id":"b"}`, []pair{{"task_id", "a"}, {"task_id", "b"}}, "task_id", "twice"},
		{`{"task_id":"a","Tenant":"b"}`, []pair{{"task_id", "a"}, {"Tenant", "b"}}, "Tenant", "unknown field"},
		{`{"output":{},"output":[]}`, []pair{{"output", []pair{}}, {"output", []pair{}}}, "output", "twice"},
		{`{"usage":{"input_tokens":1,"input_tokens":2}}`, []pair{{"usage", []pair{{"input_tokens", 1}, {"input_tokens", 2}}}}, "usage.input_tokens", "twice"},
		{`{"error":{"Class":"device"}}`, []pair{{"error", []pair{{"Class", "device"}}}}, "error.Class", "unknown field"},
	} {
		_, err := wire.DecodeResult([]byte(c.json), "")
		requireField(t, err, c.field, c.problem, "")
		_, err = wire.DecodeResult(pack(t, c.packed...), "")
		requireField(t, err, c.field, c.problem, "")
	}
	for _, b := range [][]byte{[]byte(`{"task_id":"a","new":{"x":1,"x":2},"tenants":["b"],"":1}`), pack(t, pair{"task_id", "a"}, pair{"new", []pair{{"x", 1}, {"x", 2}}}, pair{"tenants", "b"}, pair{"", 1})} {
		r, err := wire.DecodeResult(b, "")
		require.NoError(t, err)
		require.Equal(t, "a", r.TaskID)
	}
	r, err := wire.DecodeResult([]byte(`{"output":{"a":1,"a":2,"b":"\ud800"}}`), "")
	require.NoError(t, err, "a device's answer is kept as it came")
	require.JSONEq(t, `{"a":2,"b":"\ud800"}`, string(r.Output))
}

// A value of the wrong type names its field, in MessagePack as in JSON.
func TestWrongTypesNameTheField(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		json   string
		packed []pair
		field  string
		remedy string
	}{
		{`{"model":["m"]}`, []pair{{"model", []string{"m"}}}, "model", "send a string"},
		{`{"model":7}`, []pair{{"model", 7}}, "model", "send a string"},
		{`{"task_id":true}`, []pair{{"task_id", true}}, "task_id", "send a string"},
		{`{"level":"3"}`, []pair{{"level", "3"}}, "level", "send a"},
		{`{"level":2.5}`, []pair{{"level", 2.5}}, "level", "send a"},
		{`{"level":18446744073709551615}`, []pair{{"level", uint64(1<<64 - 1)}}, "level", "send a"},
		{`{"degrade":"yes"}`, []pair{{"degrade", "yes"}}, "degrade", ""},
		{`{"needs":"gpu"}`, []pair{{"needs", "gpu"}}, "needs", "send a"},
		{`{"needs":[1]}`, []pair{{"needs", []int{1}}}, "needs", "send a string"},
		{`{"labels":["a"]}`, []pair{{"labels", []string{"a"}}}, "labels", "send a"},
		{`{"labels":1}`, []pair{{"labels", 1}}, "labels", "send a"},
		{`{"callback":"http://a"}`, []pair{{"callback", "http://a"}}, "callback", "send a"},
		{`{"callback":["http://a"]}`, []pair{{"callback", []string{"http://a"}}}, "callback", "send a"},
		{`{"callback":{"url":1}}`, []pair{{"callback", []pair{{"url", 1}}}}, "callback.url", "send a string"},
		{`{"deadline":true}`, []pair{{"deadline", true}}, "deadline", "RFC 3339"},
		{`{"deadline":"soon"}`, []pair{{"deadline", "soon"}}, "deadline", "RFC 3339"},
		{`{"input":3}`, []pair{{"input", 3}}, "input", ""},
	} {
		for format, b := range map[string][]byte{wire.ContentJSON: []byte(c.json), wire.ContentMsgpack: pack(t, c.packed...)} {
			got, err := wire.DecodeTask(b, format)
			if err == nil { // the input of JSON is looked at by Validate
				got.Model = "m"
				got.Normalize(full().SubmittedAt)
				err = got.Validate(task.Limits{})
			}
			requireField(t, err, c.field, "", c.remedy)
		}
	}
	_, err := wire.DecodeTask(pack(t, pair{"labels", []pair{{"team", 1}}}), "")
	requireField(t, err, "labels.team", "an integer does not fit", "send a string")
	_, err = wire.DecodeTask([]byte{0x91, 0xa1, 'a'}, wire.ContentMsgpack)
	requireField(t, err, "", "an array", "one MessagePack map")
	_, err = wire.DecodeTask([]byte{0x81, 0x01, 0x02}, wire.ContentMsgpack)
	requireField(t, err, "", "a key is not text", "text")
	_, err = wire.DecodeTask(pack(t, pair{"model", "a\xff"}), wire.ContentMsgpack)
	requireField(t, err, "model", "not valid UTF-8", "UTF-8")
}

// Half of a surrogate pair stands for no character: two different ids would become the same.
func TestHalvesOfPairsAreRefused(t *testing.T) {
	t.Parallel()
	for text, field := range map[string]string{
		`{"task_id":"x\ud800"}`: "task_id", `{"task_id":"x\udfff"}`: "task_id", `{"labels":{"a":"\ud83d"}}`: "labels.a", `{"labels":{"\ude00":"a"}}`: "labels",
		`{"needs":["\ud83dx"]}`: "needs", `{"callback":{"url":"http://\udc00"}}`: "callback.url", `{"\ud800":1}`: "",
	} {
		_, err := wire.DecodeTask([]byte(text), "")
		requireField(t, err, field, "surrogate pair", "whole characters")
	}
	_, err := wire.DecodeResult([]byte(`{"task_id":"\ud800"}`), "")
	requireField(t, err, "task_id", "surrogate pair", "whole characters")

	got, err := wire.DecodeTask([]byte(`{"task_id":"\ud83d\ude00","model":"m","input":{"messages":"\ud800"}}`), "")
	require.NoError(t, err)
	require.Equal(t, "😀", got.ID)
	got.Normalize(full().SubmittedAt)
	requireField(t, got.Validate(task.Limits{}), "input", "surrogate pair", "whole characters")
	got.Input = task.Input(`{"messages":[{"role":"a","role":"b"}]}`)
	requireField(t, got.Validate(task.Limits{}), "input", "the member role twice", "once")
	packed := pack(t, pair{"model", "m"}, pair{"input", []pair{{"a", 1}, {"a", 2}}})
	got, err = wire.DecodeTask(packed, "")
	require.NoError(t, err)
	got.Normalize(full().SubmittedAt)
	requireField(t, got.Validate(task.Limits{}), "input", "the member a twice", "once")
}

// Content types as clients write them.
func TestContentTypes(t *testing.T) {
	t.Parallel()
	text, packed := []byte(`{"model":"m"}`), pack(t, pair{"model", "m"})
	for contentType, b := range map[string][]byte{
		"application/json": text, `"application/json"`: text, "application/json; charset=utf-8": text, `"application/json;charset=UTF-8"`: text, `Application/JSON ; q="a;b"`: text, " application/json ": text,
		"application/vnd.acme.task+json": text, "application/cloudevents+JSON; v=1": text, "text/json": text, "application/octet-stream": text, "APPLICATION/OCTET-STREAM": text,
		"application/msgpack": packed, `"application/x-msgpack"`: packed, "application/vnd.msgpack;a=b": packed, "application/vnd.acme+msgpack": packed, `"application/octet-stream"`: packed, "binary/octet-stream": packed,
	} {
		got, err := wire.DecodeTask(b, contentType)
		require.NoError(t, err, contentType)
		require.Equal(t, "m", got.Model)
	}
	for _, contentType := range []string{"text/csv", "application/xml", "json", "application/jsonp", "avro/binary", "application/json, text/html"} {
		_, err := wire.DecodeTask(text, contentType)
		requireField(t, err, "content-type", "neither JSON nor MessagePack", "application/json")
	}
}

// What some clients write in front of a record is skipped, or named.
func TestWhatStandsInFrontOfARecord(t *testing.T) {
	t.Parallel()
	text, packed := `{"model":"m"}`, string(pack(t, pair{"model", "m"}))
	for name, b := range map[string]string{
		"BOM": "\xef\xbb\xbf" + text, "two": "\xef\xbb\xbf\xef\xbb\xbf" + text, "BOM and space": "\xef\xbb\xbf \n" + text,
		"Confluent's prefix": "\x00\x00\x00\x00\x0c" + text, "in front of MessagePack": "\x00\x00\x00\x00\x0c" + packed, "a high number": "\x00\x7b\x01\x02\x03" + text,
	} {
		for _, contentType := range []string{"", wire.ContentJSON} {
			if contentType != "" && strings.HasSuffix(b, packed) {
				continue
			}
			got, err := wire.DecodeTask([]byte(b), contentType)
			require.NoError(t, err, name)
			require.Equal(t, "m", got.Model)
		}
	}
	wide := func(s string, unit int, order string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			zeros := strings.Repeat("\x00", unit-1)
			if order == "big" {
				b.WriteString(zeros + string([]byte{c}))
			} else {
				b.WriteString(string([]byte{c}) + zeros)
			}
		}
		return b.String()
	}
	for name, c := range map[string]struct{ in, problem, remedy string }{
		"UTF-16, big": {"\xfe\xff" + wide(text, 2, "big"), "it is UTF-16", "UTF-8"}, "UTF-16, little": {"\xff\xfe" + wide(text, 2, "little"), "it is UTF-16", "UTF-8"},
		"UTF-16BE": {wide(text, 2, "big"), "it is UTF-16", "UTF-8"}, "UTF-16LE": {wide(text, 2, "little"), "it is UTF-16", "UTF-8"},
		"UTF-32": {"\xff\xfe\x00\x00" + wide(text, 4, "little"), "it is UTF-32", "UTF-8"}, "UTF-32BE": {wide(text, 4, "big"), "it is UTF-32", "UTF-8"},
		"Avro": {"\x00\x00\x00\x00\x0c\x02\x06abc", "Confluent", "JSON Schema"}, "nothing after the prefix": {"\x00\x00\x00\x00\x0c", "first byte 0x00", ""},
		"only a BOM": {"\xef\xbb\xbf", "empty", ""}, "BOM and garbage": {"\xef\xbb\xbfhello", "first byte 0x68", ""},
	} {
		_, err := wire.DecodeTask([]byte(c.in), "")
		require.Error(t, err, name)
		requireField(t, err, "", c.problem, c.remedy)
	}
}
