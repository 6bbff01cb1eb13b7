// Package topicid asks a broker for the ids of topics, which kafka-go's requests leave out.
//
// Kafka gives each topic an id when it is created, so a topic that was deleted and created again has
// another one, although its name is the same. Brokers since Kafka 2.8 tell the ids in Metadata
// version 10; kafka-go knows versions up to 8. The exchange therefore happens on a connection of
// kafka-go, but in our own bytes: first ApiVersions, to learn whether the broker knows version 10,
// then Metadata.
package topicid

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	keyMetadata    = 3
	keyAPIVersions = 18
	version        = 10 // of Metadata: the first with topic ids
	maxAnswer      = 16 << 20
	correlation    = 1
)

// Request asks for the ids of topics. It is a request for the RoundTrip of a kafka-go transport.
type Request struct{ Topics []string }

// Ask asks a broker for the ids of topics.
func Ask(ctx context.Context, transport *kafka.Transport, addr net.Addr, topics []string) (*Response, error) {
	res, err := transport.RoundTrip(ctx, addr, &Request{Topics: topics})
	if err != nil {
		return nil, err
	}
	return res.(*Response), nil //nolint:forcetypeassert // RawExchange returns no other
}

// Response is the answer.
type Response struct {
	Cluster string            // id of the cluster; empty: the broker does not say
	IDs     map[string]string // topic → id in hex. A topic that does not exist is missing, and so are all if the broker does not know ids.
	Known   bool              // the broker knows ids

	Partitions map[string]int // of the topics that have an id
}

// ApiKey implements protocol.Message.
func (*Request) ApiKey() protocol.ApiKey { return protocol.Metadata } //nolint:revive // kafka-go's name

// ApiKey implements protocol.Message.
func (*Response) ApiKey() protocol.ApiKey { return protocol.Metadata } //nolint:revive // kafka-go's name

// Required implements protocol.RawExchanger.
func (*Request) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange implements protocol.RawExchanger.
func (r *Request) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	answer, err := exchange(rw, request(keyAPIVersions, 0, nil))
	if err != nil {
		return nil, fmt.Errorf("asking a broker for its versions: %w", err)
	}
	known, err := knowsIDs(answer)
	if err != nil || !known {
		return &Response{}, err
	}
	if answer, err = exchange(rw, request(keyMetadata, version, r.body())); err != nil {
		return nil, fmt.Errorf("asking a broker for the ids of topics: %w", err)
	}
	return Decode(answer)
}

// request encodes a request with its header: version 1 for old versions, 2 for flexible ones.
func request(key, version int16, body []byte) []byte {
	const client = "batchyard"
	b := binary.BigEndian.AppendUint16(make([]byte, 4, 64+len(body)), uint16(key)) //nolint:gosec // a constant
	b = binary.BigEndian.AppendUint16(b, uint16(version))                          //nolint:gosec // a constant
	b = binary.BigEndian.AppendUint32(b, correlation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(client)))
	b = append(b, client...)
	if key == keyMetadata {
		b = append(b, 0) // no tagged fields
	}
	b = append(b, body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4)) //nolint:gosec // names of a few topics
	return b
}

// body encodes Metadata version 10.
func (r *Request) body() []byte {
	b := binary.AppendUvarint(nil, uint64(len(r.Topics))+1)
	for _, name := range r.Topics {
		b = append(b, make([]byte, 16)...) // no id: by name
		b = binary.AppendUvarint(b, uint64(len(name))+1)
		b = append(append(b, name...), 0)
	}
	return append(b, 0, 0, 0, 0) // create no topics, list no permissions, no tagged fields
}

// exchange sends a request and returns the body of the answer, after the correlation id.
func exchange(rw io.ReadWriter, req []byte) ([]byte, error) {
	if _, err := rw.Write(req); err != nil {
		return nil, err
	}
	var head [8]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 4 || size > maxAnswer {
		return nil, fmt.Errorf("the answer has %d bytes, and at most %d are read", size, maxAnswer)
	}
	if got := binary.BigEndian.Uint32(head[4:]); got != correlation {
		return nil, fmt.Errorf("the answer is to request %d, not to %d", got, correlation)
	}
	b := make([]byte, size-4)
	_, err := io.ReadFull(rw, b)
	return b, err
}

// knowsIDs parses the answer to ApiVersions version 0.
func knowsIDs(b []byte) (bool, error) {
	d := decoder{b: b}
	if code := d.int16(); code != 0 {
		return false, fmt.Errorf("asking a broker for its versions: error code %d", code)
	}
	for n := d.int32(); n > 0 && !d.failed; n-- {
		key, _, highest := d.int16(), d.int16(), d.int16()
		if key == keyMetadata {
			return highest >= version, nil
		}
	}
	return false, d.err()
}

// Decode parses the answer to Metadata version 10, without size and correlation id.
func Decode(b []byte) (*Response, error) {
	d := decoder{b: b}
	out := &Response{Known: true, IDs: map[string]string{}, Partitions: map[string]int{}}
	d.tags()
	d.int32() // throttle time
	for n := d.length(); n > 0 && !d.failed; n-- {
		d.int32()
		d.text()
		d.int32()
		d.text()
		d.tags()
	}
	out.Cluster = d.text()
	d.int32() // controller
	for n := d.length(); n > 0 && !d.failed; n-- {
		code, name, id := d.int16(), d.text(), d.take(16)
		d.take(1) // internal
		partitions := d.length()
		for p := partitions; p > 0 && !d.failed; p-- {
			d.partition()
		}
		d.int32() // permissions
		d.tags()
		if code == 0 && !d.failed && [16]byte(id) != [16]byte{} {
			out.IDs[name], out.Partitions[name] = hex.EncodeToString(id), partitions
		}
	}
	return out, d.err()
}

// decoder reads the flexible encoding. After an error everything is zero.
type decoder struct {
	b      []byte
	failed bool
}

var errMalformed = errors.New("reading the ids of topics: the broker's answer is malformed")

func (d *decoder) err() error {
	if d.failed {
		return errMalformed
	}
	return nil
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.failed, d.b = true, nil
	}
	if d.failed {
		return make([]byte, min(max(n, 0), 16))
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) int16() int16 { return int16(binary.BigEndian.Uint16(d.take(2))) } //nolint:gosec // two's complement
func (d *decoder) int32() int32 { return int32(binary.BigEndian.Uint32(d.take(4))) } //nolint:gosec // two's complement

func (d *decoder) uvarint() int {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > math.MaxInt32 {
		d.failed, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return int(v)
}

// length reads the length of an array or string; 0 for null, too.
func (d *decoder) length() int { return max(0, d.uvarint()-1) }

func (d *decoder) text() string { return string(d.take(d.length())) }

// tags skips tagged fields.
func (d *decoder) tags() {
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		d.uvarint()
		d.take(d.uvarint())
	}
}

func (d *decoder) partition() {
	d.take(2 + 4 + 4 + 4) // error, index, leader, its epoch
	for range 3 {         // replicas, in-sync replicas, offline replicas
		d.take(4 * d.length())
	}
	d.tags()
}
