package stream

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream/internal/signature"
)

var (
	keyA = strings.Repeat("a", signature.MinKeyLen)
	keyB = strings.Repeat("b", signature.MinKeyLen)
)

// asRead returns a message as a client with the keys reads it.
func asRead(m Message, prefix string, keys ...string) *Record {
	r := &Record{Topic: m.Topic, Value: m.Value, Headers: m.Headers, signer: signature.NewSigner(prefix, keys)}
	if m.Key != "" {
		r.Key = []byte(m.Key)
	}
	return r
}

// A signature covers the topic, key, value and every header: whatever is changed, added or taken
// away, the record is no longer ours.
func TestSignaturesCoverTheWholeRecord(t *testing.T) {
	t.Parallel()
	header := func(key, value string) Header { return Header{Key: key, Value: []byte(value)} }
	m := Message{Topic: Results, Key: "k", Value: []byte("v"), Headers: []Header{header("a", "b"), header("c", "")}}
	own := m.Headers
	m.Sign(signature.NewSigner("p.", []string{keyA}))
	require.Len(t, own, 2, "the caller's headers stay as they are")
	require.True(t, asRead(m, "p.", keyA).Ours())
	require.True(t, asRead(m, "p.", keyB, keyA).Ours(), "any key verifies")
	made := m.Headers[2]
	require.Equal(t, HeaderSignature, made.Key)

	for name, change := range map[string]func(*Record){
		"topic":              func(r *Record) { r.Topic = Events },
		"prefix":             func(r *Record) { r.signer = signature.NewSigner("q.", []string{keyA}) },
		"key":                func(r *Record) { r.Key = []byte("K") },
		"value":              func(r *Record) { r.Value = []byte("w") },
		"key and value":      func(r *Record) { r.Key, r.Value = []byte("kv"), nil },
		"header's value":     func(r *Record) { r.Headers = []Header{header("a", "x"), header("c", ""), made} },
		"header's name":      func(r *Record) { r.Headers = []Header{header("A", "b"), header("c", ""), made} },
		"header taken away":  func(r *Record) { r.Headers = []Header{header("a", "b"), made} },
		"header added":       func(r *Record) { r.Headers = append(r.Headers, header("origin-actor", "root")) },
		"headers swapped":    func(r *Record) { r.Headers = []Header{header("c", ""), header("a", "b"), made} },
		"headers joined":     func(r *Record) { r.Headers = []Header{header("ab", ""), header("c", ""), made} },
		"no signature":       func(r *Record) { r.Headers = own },
		"another's key":      func(r *Record) { r.signer = signature.NewSigner("p.", []string{keyB}) },
		"built-in key":       func(r *Record) { r.signer = signature.NewSigner("p.", nil) },
		"a signature before": func(r *Record) { r.Headers = append([]Header{header(HeaderSignature, "v1,x")}, r.Headers...) },
		"its version": func(r *Record) {
			r.Headers = append(own[:2:2], header(HeaderSignature, "v2,"+string(made.Value[3:])))
		},
		"no base64": func(r *Record) { r.Headers = append(own[:2:2], header(HeaderSignature, "v1,"+strings.Repeat("!", 44))) },
	} {
		r := asRead(m, "p.", keyA)
		change(r)
		require.False(t, r.Ours(), name)
		require.False(t, r.Ours(), name)
	}

	// The headers of a replay, and a second signature, change nothing.
	r := asRead(m, "p.", keyA)
	r.Headers = append(r.Headers, header(HeaderReplay, "x"), header(HeaderReplayFrom, "1@2"), header(HeaderSignature, "v1,x"))
	require.True(t, r.Ours())
	// A part of our record is ours; a part of another's is not.
	require.True(t, asRead(m, "p.", keyA).WithValue([]byte("part")).Ours())
	require.False(t, asRead(m, "p.", keyB).WithValue([]byte("part")).Ours())
}

func TestSigningKeysAreChecked(t *testing.T) {
	t.Parallel()
	check := func(keys ...string) error {
		return Config{SessionTimeout: 3, HeartbeatInterval: 1, SigningKeys: keys}.Check()
	}
	require.NoError(t, check())
	require.NoError(t, check(keyA, keyB))
	err := check(keyA, "secret")
	require.EqualError(t, err, "kafka.signing_keys: key 2 has 6 characters: use at least 32, such as the output of `openssl rand -hex 32`")
	require.ErrorContains(t, check(strings.Split(strings.Repeat(keyA+",", signature.MaxKeys), ",")...), "use at most 8")
}

// What this client writes is ours, whichever way it is written; what others write is not, and
// neither is what is written verbatim.
func TestOursAndTheirs(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.SigningKeys = []string{keyA}
	cl := open(t, cfg)
	cfg.SigningKeys = []string{keyB, keyA}
	rotated := open(t, cfg)
	cfg.SigningKeys = nil
	stranger := open(t, cfg)

	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "ours", Headers: []Header{{Key: "a"}, {Key: HeaderSignature, Value: []byte("v1,x")}}}))
	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, EmptyKey: true, Value: []byte("x")}))
	o := cl.NewOutbox("test", 10, 1<<20)
	require.NoError(t, o.Put(until(t), Unit{Messages: []Message{{Topic: TasksNormal, Key: "outbox", Value: make([]byte, 200<<10)}}}))
	require.NoError(t, o.Close(until(t)))
	require.NoError(t, rotated.Produce(until(t), Message{Topic: TasksNormal, Key: "rotated", Value: []byte("x")}))
	require.NoError(t, stranger.Produce(until(t), Message{Topic: TasksNormal, Key: "stranger", Value: []byte("x")}))
	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "verbatim", Value: []byte("x"), Verbatim: true}))
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.DefaultProduceTopic(cl.full(TasksNormal)))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.ProduceSync(until(t), &kgo.Record{Key: []byte("franz"), Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: HeaderSignature, Value: []byte("v1,x")}}}).FirstErr())

	ours := func(as *Client) map[string]bool {
		out := map[string]bool{}
		require.NoError(t, as.Scan(until(t), TasksNormal, func(r *Record) error { out[string(r.Key)] = r.Ours(); return nil }))
		return out
	}
	require.Equal(t, map[string]bool{"ours": true, "": true, "outbox": true, "rotated": false, "stranger": false, "verbatim": false, "franz": false}, ours(cl))
	require.Equal(t, map[string]bool{"ours": true, "": true, "outbox": true, "rotated": true, "stranger": false, "verbatim": false, "franz": false}, ours(rotated))
}

// An empty key stays empty, and a missing one missing.
func TestEmptyKeys(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksLow, EmptyKey: true, Value: []byte("empty")}, Message{Topic: TasksLow, Value: []byte("missing")}))
	keys := map[string][]byte{}
	require.NoError(t, cl.Scan(until(t), TasksLow, func(r *Record) error { keys[string(r.Value)] = r.Key; return nil }))
	require.Equal(t, map[string][]byte{"empty": {}, "missing": nil}, keys)
}

func BenchmarkSignature(b *testing.B) {
	s := signature.NewSigner("p.", []string{keyA})
	for _, size := range []int{300, 1000, 10_000, 1_000_000} {
		m := benchMessages(TasksNormal, 1, size)[0]
		b.Run("sign "+strconv.Itoa(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				signed := m
				signed.Sign(s)
			}
		})
		m.Sign(s)
		b.Run("verify "+strconv.Itoa(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				r := &Record{Topic: m.Topic, Key: []byte(m.Key), Value: m.Value, Headers: m.Headers, signer: s}
				if !r.Ours() {
					b.Fatal("not ours")
				}
			}
		})
	}
}
