package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/batchyard/batchyard/stream/internal/batches"
	"github.com/batchyard/batchyard/stream/internal/fetch"
	"github.com/batchyard/batchyard/stream/internal/offsets"
)

const (
	// maxFetchBytes bounds how much is requested when the broker sends no whole record: the largest
	// record of any topic, with room to spare.
	maxFetchBytes = fetch.MaxBatch
	// maxRecordBytes is the largest record that is read as a whole: what a dead letter can hold beside
	// its own headers, so that every record that is read can also be set aside. A compressed record
	// of a few kilobytes may be larger.
	maxRecordBytes = internalLimit
	// minDecodeBytes is how much of what was fetched is decompressed at a time, at least.
	minDecodeBytes = 1 << 20
)

// fetched is records of one partition that are read one after the other. What was fetched stays
// compressed until it is decoded, because a few kilobytes may hold gigabytes.
type fetched struct {
	recs           []*Record
	next           int64 // where to continue reading
	end            ends
	needsMoreBytes bool // there is more, but nothing of it came whole: ask for more bytes
	rest           *undecoded
}

// undecoded is what was fetched and not decoded yet.
type undecoded struct {
	cl     *Client
	req    fetchRequest
	reader *batches.Reader
	end    ends
}

// ends is where a partition ended at the time of a fetch.
type ends struct {
	highest  int64 // one above its last record
	readable int64 // one above the last record that is not of an open transaction, nor behind one
}

// fetchRequest says what to read from one partition.
type fetchRequest struct {
	topic     string // without the prefix
	partition int
	from      int64
	maxBytes  int64
	skip      []offsets.Span // records to leave out
}

// fetch reads one partition from an offset on. The broker holds the request for kafka.fetch_wait
// while there is nothing to read. Records of open transactions are not read, and those of aborted
// ones never. If fetched.rest is not nil, the caller decodes it before the next fetch, or closes it.
func (cl *Client) fetch(ctx context.Context, req fetchRequest) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.FetchWait+cl.cfg.RequestTimeout)
	defer cancel()
	answer, err := fetch.Do(ctx, cl.transport, cl.addr, fetch.Request{
		ClientID: cl.cfg.ClientID, Topic: cl.full(req.topic), Partition: req.partition, From: req.from, MaxBytes: req.maxBytes, MaxWait: cl.cfg.FetchWait,
	})
	if err != nil {
		return fetched{}, err
	}
	if o := answer.Oversized; o != nil {
		rec := cl.record(req, o)
		return fetched{recs: []*Record{rec}, next: o.Broken.Last + 1, end: ends{answer.Highest, answer.Stable}}, nil
	}
	u := &undecoded{
		cl: cl, req: req, end: ends{answer.Highest, answer.Stable},
		reader: batches.NewReader(answer.Records, req.from, answer.Aborted, batches.Limits{Record: recordLimit(req.topic)}),
	}
	out, err := u.decode(req.maxBytes)
	if err == nil && out.next == req.from && out.rest == nil && answer.Stable > req.from {
		out.needsMoreBytes = u.reader.Batches() == 0
	}
	return out, err
}

func recordLimit(topic string) int64 {
	if topic == DLQ {
		return dlqLimit
	}
	return maxRecordBytes
}

// decode decodes records until they take so many bytes, or minDecodeBytes if that is more.
func (u *undecoded) decode(bytes int64) (fetched, error) {
	out := fetched{end: u.end}
	for left := max(bytes, minDecodeBytes); ; {
		r, err := u.reader.Read()
		out.next = u.reader.Next()
		if errors.Is(err, io.EOF) {
			u.close()
			return out, nil
		}
		if err != nil {
			u.close()
			return fetched{}, fmt.Errorf("reading records: %w", err)
		}
		if offsets.Contains(u.req.skip, r.Offset) {
			continue
		}
		rec := u.cl.record(u.req, r)
		out.recs = append(out.recs, rec)
		if left -= rec.size(); left <= 0 {
			out.rest = u
			return out, nil
		}
	}
}

func (u *undecoded) close() {
	if u != nil {
		u.reader.Close()
	}
}

// record returns a record as it was read.
func (cl *Client) record(req fetchRequest, r *batches.Record) *Record {
	rec := &Record{
		Topic: req.topic, Partition: req.partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Time: time.UnixMilli(r.Timestamp),
		signer: cl.signer,
	}
	if len(r.Headers) > 0 {
		rec.Headers = make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			rec.Headers[i] = Header{Key: h.Key, Value: h.Value}
		}
	}
	if b := r.Broken; b != nil {
		rec.Incomplete = &Incomplete{Err: b.Err, Size: b.Size, SHA256: b.SHA256, Last: b.Last}
	}
	return rec
}

// bounds returns the first offset of a partition and the one after its last that can be read: open
// transactions are not.
func (cl *Client) bounds(ctx context.Context, topic string, id int) (first, end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	return fetch.Bounds(ctx, cl.kafka, cl.full(topic), id)
}
