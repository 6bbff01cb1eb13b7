// Package message is what is written to Kafka.
package message

import (
	"fmt"

	"github.com/batchyard/batchyard/stream/internal/signature"
)

// Header is a key and a value that accompany a message.
type Header struct {
	Key   string
	Value []byte
}

// Message is a record to be written.
type Message struct {
	Topic   string // without the prefix
	Key     string // messages with the same key stay in order; empty: any partition
	Value   []byte // nil: null
	Headers []Header
	// EmptyKey says that the key is an empty text. Otherwise an empty Key is null.
	EmptyKey bool
	// Verbatim messages are written without a signature of this process: the record is another's, or
	// carries the signature that it had. All others are signed.
	Verbatim bool
}

// Size returns an upper estimate of the bytes that a message takes in a batch.
func (m *Message) Size() int {
	n := 32 + len(m.Key) + len(m.Value)
	for _, h := range m.Headers {
		n += 10 + len(h.Key) + len(h.Value)
	}
	return n
}

// TooLargeError reports a message that is larger than its topic allows. Retrying does not help.
type TooLargeError struct {
	Topic string
	Size  int   // of the message, in bytes
	Limit int64 // with which Batchyard creates the topic; the broker's own limit may be lower
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("a message of %d bytes exceeds max.message.bytes of topic %s (%d when Batchyard creates it)", e.Size, e.Topic, e.Limit)
}

// Signed is the part of a record that its signature covers.
func Signed(topic, key string, value []byte, headers []Header) signature.Signed {
	return signature.Signed{Topic: topic, Key: key, Value: value, Headers: func(use func(string, []byte)) {
		for i := range headers {
			use(headers[i].Key, headers[i].Value)
		}
	}}
}

// Sign adds a signature to a message, in place of any that it carries. The message's own slice of
// headers stays as it is.
func (m *Message) Sign(s *signature.Signer) {
	headers := make([]Header, 0, len(m.Headers)+1)
	for _, h := range m.Headers {
		if h.Key != signature.Header {
			headers = append(headers, h)
		}
	}
	m.Headers = append(headers, Header{Key: signature.Header, Value: s.Sign(Signed(m.Topic, m.Key, m.Value, headers))})
}
