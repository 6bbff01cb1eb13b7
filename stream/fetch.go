package stream

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// maxFetchBytes bounds how much is requested when the broker sends no whole record: the largest
// record of any topic, with room to spare.
const maxFetchBytes = 4 * dlqLimit

// fetched is the answer to one fetch.
type fetched struct {
	recs           []*Record
	next           int64 // where to continue reading
	highest        int64 // the end of the log: one above its last record
	needsMoreBytes bool  // there is more, but nothing of it came whole: ask for more bytes
}

// fetchRequest says what to read from one partition.
type fetchRequest struct {
	topic     string // without the prefix
	partition int
	from      int64
	maxBytes  int64
	skip      []offsets.Span // records to leave out
}

// fetch reads one partition from an offset on. The broker holds the request for
// kafka.fetch_wait while there is nothing to read.
func (cl *Client) fetch(ctx context.Context, req fetchRequest) (fetched, error) {
	wait := cl.cfg.FetchWait
	ctx, cancel := context.WithTimeout(ctx, wait+cl.cfg.RequestTimeout)
	defer cancel()
	res, err := cl.kafka.Fetch(ctx, &kafka.FetchRequest{
		Topic: cl.full(req.topic), Partition: req.partition, Offset: req.from, MinBytes: 1, MaxBytes: req.maxBytes, MaxWait: wait,
	})
	if err != nil {
		return fetched{}, err
	}
	out := fetched{next: req.from, highest: res.HighWatermark}
	if res.Error != nil {
		return out, res.Error
	}
	batches := 0
	if s, ok := res.Records.(*protocol.RecordStream); ok {
		batches = len(s.Records)
		for _, b := range s.Records {
			// The marker of a transaction takes an offset but is not a record.
			if c, ok := b.(*protocol.ControlBatch); ok {
				out.next = max(out.next, c.BaseOffset+1)
			}
		}
	}
	if err := out.decode(res.Records, req); err != nil {
		return out, err
	}
	switch {
	case out.next > req.from || res.HighWatermark <= req.from:
	case batches == 0:
		out.needsMoreBytes = true
	default:
		// The broker sends the batch that contains the offset, or the next one. This batch has
		// no record at or above the offset: compaction removed them, or it cannot be read.
		// Step over it.
		out.next = req.from + 1
	}
	return out, nil
}

// decode copies the records out of the library's pages, which are reused. Each record gets its
// own memory, so that one held for long does not keep its neighbours alive.
func (f *fetched) decode(records protocol.RecordReader, req fetchRequest) error {
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading records: %w", err)
		}
		// A batch may start below the requested offset.
		if r.Offset < req.from || offsets.Contains(req.skip, r.Offset) {
			closeBytes(r)
			f.next = max(f.next, r.Offset+1)
			continue
		}
		rec := &Record{Topic: req.topic, Partition: req.partition, Offset: r.Offset, Time: r.Time}
		err = rec.copyFrom(r)
		closeBytes(r)
		if err != nil {
			return fmt.Errorf("reading record %s: %w", rec.Position(), err)
		}
		f.recs = append(f.recs, rec)
		f.next = max(f.next, r.Offset+1)
	}
}

func (r *Record) copyFrom(from *protocol.Record) error {
	keyLen, valueLen := 0, 0
	if from.Key != nil {
		keyLen = from.Key.Len()
	}
	if from.Value != nil {
		valueLen = from.Value.Len()
	}
	b := make([]byte, keyLen+valueLen)
	if from.Key != nil {
		r.Key = b[:keyLen:keyLen]
		if _, err := io.ReadFull(from.Key, r.Key); err != nil {
			return err
		}
	}
	if from.Value != nil {
		r.Value = b[keyLen:]
		if _, err := io.ReadFull(from.Value, r.Value); err != nil {
			return err
		}
	}
	if len(from.Headers) > 0 {
		r.Headers = make([]Header, len(from.Headers))
		for i, h := range from.Headers {
			r.Headers[i] = Header{Key: h.Key, Value: h.Value}
		}
	}
	return nil
}

func closeBytes(r *protocol.Record) {
	if r.Key != nil {
		_ = r.Key.Close()
	}
	if r.Value != nil {
		_ = r.Value.Close()
	}
}

// bounds returns the first offset of a partition and the one after its last.
func (cl *Client) bounds(ctx context.Context, topic string, id int) (first, end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	ask := func(which kafka.OffsetRequest) (kafka.PartitionOffsets, error) {
		res, err := cl.kafka.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{cl.full(topic): {which}}})
		if err != nil {
			return kafka.PartitionOffsets{}, err
		}
		for _, p := range res.Topics[cl.full(topic)] {
			if p.Partition == id {
				return p, p.Error
			}
		}
		return kafka.PartitionOffsets{}, errNoAnswer
	}
	f, err := ask(kafka.FirstOffsetOf(id))
	if err == nil {
		var e kafka.PartitionOffsets
		e, err = ask(kafka.LastOffsetOf(id))
		first, end = f.FirstOffset, e.LastOffset
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the first and last offset of %s/%d: %w", topic, id, err)
	}
	return first, end, nil
}
