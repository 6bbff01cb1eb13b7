// Package signature signs records with shared keys, and recognizes them.
package signature

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
)

// Header is the header that shows that this installation wrote a record: "v1," and the
// HMAC-SHA256, in base64, of the record's full topic, key, value and headers.
const Header = "batchyard-signature"

// Headers that a replay of dead letters adds. They are not signed, so that a replayed record keeps
// the signature that it had; no stage reads them.
const (
	HeaderReplay     = "replay-id"
	HeaderReplayFrom = "replay-from"
)

const (
	signatureVersion = "v1,"
	signatureDomain  = "batchyard record v1\x00"

	// builtInKey signs when kafka.signing_keys is empty. Everyone knows it: it tells records apart,
	// but proves nothing.
	builtInKey = "batchyard without kafka.signing_keys"
)

// Bounds of the keys that CheckKeys accepts.
const (
	MaxKeys   = 8
	MinKeyLen = 32 // in bytes
)

// CheckKeys refuses keys that are easy to guess. It quotes none of them.
func CheckKeys(keys []string) error {
	if len(keys) > MaxKeys {
		return fmt.Errorf("kafka.signing_keys lists %d keys: use at most %d", len(keys), MaxKeys)
	}
	var errs []error
	for i, k := range keys {
		if len(k) < MinKeyLen {
			errs = append(errs, fmt.Errorf("kafka.signing_keys: key %d has %d characters: use at least %d, such as the output of `openssl rand -hex 32`", i+1, len(k), MinKeyLen))
		}
	}
	return errors.Join(errs...)
}

// Signer signs records with its first key and recognizes those signed with any of its keys. All
// methods may be called from any goroutine.
type Signer struct {
	prefix string // of topics
	keys   []*signingKey
}

// NewSigner returns a signer for the topics with a prefix. Without keys it uses a built-in one.
func NewSigner(prefix string, keys []string) *Signer {
	if len(keys) == 0 {
		keys = []string{builtInKey}
	}
	s := &Signer{prefix: prefix}
	for _, k := range keys {
		key := &signingKey{}
		key.pool.New = func() any { return &macState{hash: hmac.New(sha256.New, []byte(k))} }
		s.keys = append(s.keys, key)
	}
	return s
}

// signingKey is one key, with hash states to reuse: preparing one costs as much as hashing 128 bytes.
type signingKey struct{ pool sync.Pool }

type macState struct {
	hash hash.Hash
	buf  []byte            // everything that is signed except the value
	sum  [sha256.Size]byte // memory for the hash's result
}

// Signed is the part of a record that its signature covers. Headers calls its argument for each header,
// in order.
type Signed struct {
	Topic   string // without the prefix
	Key     string
	Value   []byte
	Headers func(func(key string, value []byte))
}

// mac computes the HMAC. Each part is preceded by its length, so that bytes cannot move from one to
// the next.
func (k *signingKey) mac(prefix string, r Signed) (sum [sha256.Size]byte) {
	st, _ := k.pool.Get().(*macState)
	defer k.pool.Put(st)
	b := append(st.buf[:0], signatureDomain...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(prefix)+len(r.Topic)))
	b = append(append(b, prefix...), r.Topic...)
	b = appendSigned(b, r.Key)
	r.Headers(func(key string, value []byte) {
		if isSigned(key) {
			b = appendSigned(b, key)
			b = appendSigned(b, value)
		}
	})
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value))) // after the headers, so that what follows is the value
	st.hash.Reset()
	_, _ = st.hash.Write(b)
	_, _ = st.hash.Write(r.Value)
	sum = [sha256.Size]byte(st.hash.Sum(st.sum[:0]))
	if st.buf = b; cap(b) > maxSignedBuffer {
		st.buf = nil
	}
	return sum
}

// maxSignedBuffer is the size up to which a buffer is reused.
const maxSignedBuffer = 64 << 10

func appendSigned[T string | []byte](b []byte, part T) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
}

// isSigned reports whether signatures cover a header.
func isSigned(header string) bool {
	switch header {
	case Header, HeaderReplay, HeaderReplayFrom:
		return false
	}
	return true
}

// Sign returns the value of the header.
func (s *Signer) Sign(r Signed) []byte {
	sum := s.keys[0].mac(s.prefix, r)
	return base64.StdEncoding.AppendEncode([]byte(signatureVersion), sum[:])
}

// Verify reports whether one of the keys made the record's signature.
func (s *Signer) Verify(signature string, r Signed) bool {
	text, found := strings.CutPrefix(signature, signatureVersion)
	if !found || len(text) != base64.StdEncoding.EncodedLen(sha256.Size) {
		return false
	}
	got, err := base64.StdEncoding.AppendDecode(nil, []byte(text))
	if err != nil {
		return false
	}
	for _, k := range s.keys {
		if sum := k.mac(s.prefix, r); hmac.Equal(sum[:], got) {
			return true
		}
	}
	return false
}
