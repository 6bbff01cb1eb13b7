package recorder

import (
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// copyRowsSQL is the COPY of rows that a [rowEncoder] encodes. It names all columns: hashes cover
// them, and the owner of the table could change a default.
func copyRowsSQL(table string) string {
	return `COPY ` + table + ` (` + audit.RowColumns + `) FROM STDIN (FORMAT binary)`
}

// rowEncoder encodes audit rows in the binary format of COPY. Nothing else encodes an audit row.
// Doing it here costs a third of passing each field to the driver as an interface.
type rowEncoder struct {
	pg.Fields
	rows    int
	scratch []byte // of a row's hash
}

// resetCopy empties the encoder.
func (c *rowEncoder) resetCopy() {
	c.rows = 0
	c.Fields.ResetCopy()
}

// row adds an event as the next row of the chain that ends at end, and advances end and its tree. digests are those of rows
// of other tables; nil for most. The fields are [audit.RowColumns], in this order.
func (c *rowEncoder) row(e *task.Event, from audit.Source, ingested time.Time, digests []byte, end *chainEnd) {
	c.rows++
	c.Row(audit.RowWidth)
	begin := len(c.B)
	c.Time(e.Time)
	c.Time(ingested)
	c.Text(e.Tenant)
	c.Text(string(e.ActorType))
	c.Text(e.ActorID)
	c.TextOrNull(e.SourceAddr)
	c.TextOrNull(e.UserAgent)
	c.Text(string(e.Action))
	c.TextOrNull(e.ResourceType)
	c.TextOrNull(e.ResourceID)
	c.Text(string(e.Outcome))
	c.TextOrNull(string(e.ErrorClass))
	c.TextOrNull(e.TaskID)
	c.TextOrNull(e.JobID)
	c.TextOrNull(e.BatchID)
	c.TextOrNull(e.DeviceID)
	c.Int4OrNull(int32(e.Attempt))
	c.TextOrNull(e.TraceID)
	if e.Duration == 0 {
		c.Null()
	} else {
		c.Float8(float64(e.Duration) / float64(time.Millisecond))
	}
	c.TextOrNull(e.Model)
	c.Int8OrNull(e.InputTokens)
	c.Int8OrNull(e.OutputTokens)
	c.BytesOrNull(e.InputSHA256)
	c.Int8OrNull(e.InputSize)
	c.BytesOrNull(e.OutputSHA256)
	c.Int8OrNull(e.OutputSize)
	c.BytesOrNull(e.Detail)
	c.BytesOrNull(digests)
	c.Text(from.Topic)
	c.Int4(from.Partition)
	c.Int8(from.Offset)
	c.Int4(from.Index)
	end.Rows++
	c.Int8(end.Rows)
	prev := end.Hash
	end.Hash, c.scratch = audit.RowHash(prev, c.B[begin:], c.scratch)
	end.kept = end.tree.Append(audit.RowLeaf(end.Hash), end.kept)
	c.BytesOrNull(prev[:])
	c.BytesOrNull(end.Hash[:])
}
