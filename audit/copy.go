package audit

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/batchyard/batchyard/task"
)

// copyInto is the COPY of the rows that a [copyBuffer] encodes. It has all columns: a
// hash covers them, and what a default gives is for whoever owns the table to change.
func copyInto(table string) string {
	return `COPY ` + table + ` (` + chainColumns + `, prev_hash, row_hash) FROM STDIN (FORMAT binary)`
}

// copyKeep is the size up to which a buffer is kept for the next chunk.
const copyKeep = 16 << 20

// copyBuffer encodes audit rows in the binary format of COPY. Encoding them
// here costs a third of handing each field to the driver as an interface.
type copyBuffer struct {
	fieldBuffer
	rows    int
	scratch []byte // of a row's hash
}

// resetCopy makes the buffer the beginning of a COPY.
func (c *copyBuffer) resetCopy() {
	c.rows = 0
	c.fieldBuffer.resetCopy()
}

// fieldBuffer encodes fields as Postgres' binary formats have them: the length
// in four bytes, -1 for NULL, and the value.
type fieldBuffer struct{ b []byte }

// resetCopy makes the buffer the beginning of a COPY.
func (f *fieldBuffer) resetCopy() {
	const header = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f.reset(len(header))
	copy(f.b, header)
}

// reset makes the buffer n bytes long, whatever is in them.
func (f *fieldBuffer) reset(n int) {
	if cap(f.b) < n || cap(f.b) > copyKeep {
		f.b = make([]byte, n, 64<<10)
	}
	f.b = f.b[:n]
}

// endCopy is the whole COPY.
func (f *fieldBuffer) endCopy() []byte {
	f.b = append(f.b, 0xff, 0xff)
	return f.b
}

func (f *fieldBuffer) length(n int) { f.b = binary.BigEndian.AppendUint32(f.b, uint32(int32(n))) }

func (f *fieldBuffer) null() { f.length(-1) }

// text writes a string; an empty one too.
func (f *fieldBuffer) text(s string) {
	f.length(len(s))
	f.b = append(f.b, s...)
}

// textOr writes NULL for an empty string.
func (f *fieldBuffer) textOr(s string) {
	if s == "" {
		f.null()
		return
	}
	f.text(s)
}

func (f *fieldBuffer) bytesOr(b []byte) {
	if len(b) == 0 {
		f.null()
		return
	}
	f.length(len(b))
	f.b = append(f.b, b...)
}

func (f *fieldBuffer) int2(n int16) {
	f.length(2)
	f.b = binary.BigEndian.AppendUint16(f.b, uint16(n)) //nolint:gosec // two's complement is meant
}

func (f *fieldBuffer) int4(n int32) {
	f.length(4)
	f.b = binary.BigEndian.AppendUint32(f.b, uint32(n))
}

func (f *fieldBuffer) int8(n int64) {
	f.length(8)
	f.b = binary.BigEndian.AppendUint64(f.b, uint64(n))
}

// int8If writes NULL for 0: what was not counted.
func (f *fieldBuffer) int8If(n int64) {
	if n == 0 {
		f.null()
		return
	}
	f.int8(n)
}

// postgresEpoch is from when Postgres counts, in microseconds of Unix time.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func (f *fieldBuffer) time(t time.Time) { f.int8(t.UnixMicro() - postgresEpoch) }

// origin is the record that a row is made from.
type origin struct {
	topic     string
	partition int32
	offset    int64
	index     int32
}

// row adds one event as the next of its chain.
func (c *copyBuffer) row(e *task.Event, from origin, ingested time.Time, end *chain) {
	c.rows++
	c.b = binary.BigEndian.AppendUint16(c.b, chainWidth+2)
	begin := len(c.b)
	c.time(e.Time)
	c.time(ingested)
	c.text(e.Tenant)
	c.text(string(e.ActorType))
	c.text(e.ActorID)
	c.textOr(e.SourceAddr)
	c.textOr(e.UserAgent)
	c.text(string(e.Action))
	c.textOr(e.ResourceType)
	c.textOr(e.ResourceID)
	c.text(string(e.Outcome))
	c.textOr(string(e.ErrorClass))
	c.textOr(e.TaskID)
	c.textOr(e.Job)
	c.textOr(e.Batch)
	c.textOr(e.Device)
	if e.Attempt == 0 {
		c.null()
	} else {
		c.int4(int32(e.Attempt))
	}
	c.textOr(e.TraceID)
	if e.Duration == 0 {
		c.null()
	} else {
		c.int8(int64(math.Float64bits(float64(e.Duration) / float64(time.Millisecond))))
	}
	c.textOr(e.Model)
	c.int8If(e.TokensIn)
	c.int8If(e.TokensOut)
	c.bytesOr(e.InputSHA256)
	c.int8If(e.InputSize)
	c.bytesOr(e.OutputSHA256)
	c.int8If(e.OutputSize)
	c.bytesOr(e.Detail)
	c.text(from.topic)
	c.int4(from.partition)
	c.int8(from.offset)
	c.int4(from.index)
	end.rows++
	c.int8(end.rows)
	prev := end.hash
	end.hash, c.scratch = link(prev, c.b[begin:], c.scratch)
	c.bytesOr(prev[:])
	c.bytesOr(end.hash[:])
}
