package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// maxFetchBytes bounds how much is asked for when the broker sends nothing that
// is whole: the largest record of any topic, and room.
const maxFetchBytes = 4 * dlqLimit

// fetched is the answer to one fetch.
type fetched struct {
	recs    []*Record
	next    int64 // where to read on
	highest int64 // the end of the log: one above its last record
	empty   bool  // there is more, but nothing of it came whole: ask for more bytes
}

// fetch reads one partition from an offset on. Records that skip holds are left
// out. wait is how long the broker may hold the request when there is nothing.
func (l *Log) fetch(ctx context.Context, topic string, id int, from int64, maxBytes int64, wait time.Duration, skip []span) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+l.cfg.RequestTimeout)
	defer cancel()
	res, err := l.client.Fetch(ctx, &kafka.FetchRequest{
		Topic: l.full(topic), Partition: id, Offset: from, MinBytes: 1, MaxBytes: maxBytes, MaxWait: wait,
	})
	if err != nil {
		return fetched{}, err
	}
	out := fetched{next: from, highest: res.HighWatermark}
	if res.Error != nil {
		return out, res.Error
	}
	batches := 0
	if s, ok := res.Records.(*protocol.RecordStream); ok {
		batches = len(s.Records)
		for _, b := range s.Records {
			// The marker of a transaction is one record that nobody sees.
			if c, ok := b.(*protocol.ControlBatch); ok {
				out.next = max(out.next, c.BaseOffset+1)
			}
		}
	}
	if err := out.decode(res.Records, topic, id, from, skip); err != nil {
		return out, err
	}
	switch {
	case out.next > from || res.HighWatermark <= from:
	case batches == 0:
		out.empty = true
	default:
		// The broker sends the batch in which the offset lies, or the next one. It
		// has no record of this offset or above: a batch that lost its records to
		// compaction, or one that cannot be read. Step over it.
		out.next = from + 1
	}
	return out, nil
}

// decode copies the records out of the client's pages, which are used again.
// Each record gets memory of its own: one that is held for long must not hold
// its neighbours.
func (f *fetched) decode(records protocol.RecordReader, topic string, id int, from int64, skip []span) error {
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading records: %w", err)
		}
		// A batch begins where it was written, which may be below what was asked for.
		if r.Offset < from || skipped(skip, r.Offset) {
			closeBytes(r)
			f.next = max(f.next, r.Offset+1)
			continue
		}
		rec := &Record{Topic: topic, Partition: id, Offset: r.Offset, Time: r.Time}
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
func (l *Log) bounds(ctx context.Context, topic string, id int) (first, end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.RequestTimeout)
	defer cancel()
	ask := func(which kafka.OffsetRequest) (kafka.PartitionOffsets, error) {
		res, err := l.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{l.full(topic): {which}}})
		if err != nil {
			return kafka.PartitionOffsets{}, err
		}
		for _, p := range res.Topics[l.full(topic)] {
			if p.Partition == id {
				return p, p.Error
			}
		}
		return kafka.PartitionOffsets{}, errors.New("the broker did not answer for the partition")
	}
	f, err := ask(kafka.FirstOffsetOf(id))
	if err == nil {
		var e kafka.PartitionOffsets
		e, err = ask(kafka.LastOffsetOf(id))
		first, end = f.FirstOffset, e.LastOffset
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the bounds of %s/%d: %w", topic, id, err)
	}
	return first, end, nil
}
