// Package produce writes batches of records with one request, record by record, without a copy of them.
package produce

import (
	"bytes"
	"context"
	"io"
	"net"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceAPI "github.com/segmentio/kafka-go/protocol/produce"

	"github.com/batchyard/batchyard/stream/internal/membership"
)

// NoTime is the time of a record without a timestamp, which Kafka stores as -1 ms.
var NoTime = time.UnixMilli(-1)

// Batch is the records of a request for one partition.
type Batch struct {
	Topic     string // with the prefix
	Partition int32
	Time      time.Time // of all records, or NoTime
	Records   int
	Record    func(i int, to *Record) // fills in a record
}

// Do sends the batches in one request. It returns the error of each batch, in their order, or one that
// concerns the whole request.
func Do(ctx context.Context, transport *kafka.Transport, addr net.Addr, timeout time.Duration, compression kafka.Compression, batches []Batch) ([]error, error) {
	req := &produceAPI.Request{Acks: -1, Timeout: int32(timeout.Milliseconds())}
	at := map[string]int{}
	for i := range batches {
		b := &batches[i]
		j, ok := at[b.Topic]
		if !ok {
			j = len(req.Topics)
			at[b.Topic] = j
			req.Topics = append(req.Topics, produceAPI.RequestTopic{Topic: b.Topic})
		}
		req.Topics[j].Partitions = append(req.Topics[j].Partitions, produceAPI.RequestPartition{
			Partition: b.Partition,
			RecordSet: protocol.RecordSet{Attributes: protocol.Attributes(compression) & 7, Records: &reader{batch: b}},
		})
	}
	res, err := transport.RoundTrip(ctx, addr, req)
	if err != nil {
		return nil, err
	}
	type place struct {
		topic     string
		partition int32
	}
	answers := map[place]int16{}
	for _, t := range res.(*produceAPI.Response).Topics { //nolint:forcetypeassert // the answer to that request
		for _, p := range t.Partitions {
			answers[place{t.Topic, p.Partition}] = p.ErrorCode
		}
	}
	errs := make([]error, len(batches))
	for i := range batches {
		code, ok := answers[place{batches[i].Topic, batches[i].Partition}]
		switch {
		case !ok:
			errs[i] = membership.ErrNoAnswer
		case code != 0:
			errs[i] = kafka.Error(code)
		}
	}
	return errs, nil
}

// Record is one record on its way to the library's encoder.
type Record struct {
	record     protocol.Record
	key, value memory
	headers    []protocol.Header
}

type memory struct{ bytes.Reader }

func (*memory) Close() error { return nil }

// Set sets the key, which is null if it is empty and does not say so, and the value.
func (r *Record) Set(key string, emptyKey bool, value []byte) { //nolint:revive // as a message says
	if key != "" || emptyKey {
		r.key.Reset([]byte(key))
		r.record.Key = &r.key
	}
	if value != nil {
		r.value.Reset(value)
		r.record.Value = &r.value
	}
}

// AddHeader adds a header.
func (r *Record) AddHeader(key string, value []byte) {
	r.headers = append(r.headers, protocol.Header{Key: key, Value: value})
}

// reader passes a batch to the library's encoder. It reuses one record for all of them: the encoder is
// done with a record when it asks for the next.
type reader struct {
	batch  *Batch
	at     int
	record Record
}

// ReadRecord implements protocol.RecordReader.
func (r *reader) ReadRecord() (*protocol.Record, error) {
	if r.at == r.batch.Records {
		return nil, io.EOF
	}
	r.record.record, r.record.headers = protocol.Record{Time: r.batch.Time}, r.record.headers[:0]
	r.batch.Record(r.at, &r.record)
	r.at++
	r.record.record.Headers = r.record.headers
	return &r.record.record, nil
}
