package router

import (
	"slices"
	"time"

	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// origin is the record behind an item, and the count of what it became.
type origin struct {
	rec *stream.Record
	ack *records.Ack
	// disputed: the window had another request under the id. From then on only Postgres lets it in.
	disputed  bool
	contested time.Time // when it was found to be; used only by those who hold it until it is settled
}

// newOrigin counts one thing for the record: whatever ends the task's stay here.
func newOrigin(rec *stream.Record) *origin {
	return &origin{rec: rec, ack: records.NewAck(rec, 1)}
}

// Lost reports whether another router reads the record from now on, or this one does again.
func (o *origin) Lost() bool { return o.ack.Lost() }

// Settled reports whether the events of the record's arrival are acknowledged.
func (o *origin) Settled() bool { return o.ack.Open() == 1 }

// originOf is the record behind an item of this router.
func originOf(it *decide.Item) *origin {
	return it.Origin.(*origin) //nolint:forcetypeassert // intake makes all items
}

// depart returns the origin of an item that has left the window, made to finish the records of its
// riders, too. From now on no more riders come. Call it once per item.
func depart(it *decide.Item) *origin {
	o := originOf(it)
	for _, r := range it.Riders() {
		o.ack.Carry(originOf(r).ack)
	}
	return o
}

// holder is a record that holds up the commit of its partition.
type holder struct {
	owner  *stream.Ownership
	offset int64
}

// carries reports whether the item comes from the record, or a rider of it does.
func (h holder) carries(it *decide.Item) bool {
	is := func(it *decide.Item) bool { return originOf(it).rec.Ownership() == h.owner && it.Offset == h.offset }
	return is(it) || slices.ContainsFunc(it.Riders(), is)
}
