package stream

import (
	"github.com/batchyard/batchyard/stream/internal/message"
	"github.com/batchyard/batchyard/stream/internal/signature"
)

// HeaderSignature is the header that shows that this installation wrote a record.
const HeaderSignature = signature.Header

// Headers that a replay of dead letters adds. They are not signed, so that a replayed record keeps the
// signature that it had; no stage reads them.
const (
	HeaderReplay     = signature.HeaderReplay
	HeaderReplayFrom = signature.HeaderReplayFrom
)

// builtInSigner checks records that were not read from a topic.
var builtInSigner = signature.NewSigner("", nil)

// What [Record.Ours] found.
const (
	originUnknown uint32 = iota
	originOurs
	originForeign
)

// Ours reports whether this installation wrote the record: whether its signature was made with one of
// kafka.signing_keys. The first call computes it, which takes about 1 µs per kB; later calls are free.
// It may be called from any goroutine. Without configured keys, anyone can sign.
func (r *Record) Ours() bool {
	found := r.origin.Load()
	if found == originUnknown {
		found = originForeign
		if s := r.Header(HeaderSignature); s != "" && r.Incomplete == nil && r.verifier().Verify(s, message.Signed(r.Topic, string(r.Key), r.Value, r.Headers)) {
			found = originOurs
		}
		r.origin.Store(found)
	}
	return found == originOurs
}

func (r *Record) verifier() *signature.Signer {
	if r.signer == nil {
		return builtInSigner
	}
	return r.signer
}

// WithValue returns a copy of the record with another value, for a part of the record that is set
// aside. The copy is ours if the record is. Done and Lost do nothing on it.
func (r *Record) WithValue(value []byte) *Record {
	out := &Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: value, Headers: r.Headers, Time: r.Time, signer: r.signer,
	}
	if r.Ours() {
		m := Message{Topic: r.Topic, Key: string(r.Key), Value: value, Headers: r.Headers}
		m.Sign(r.verifier())
		out.Headers = m.Headers
	}
	return out
}
