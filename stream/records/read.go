package records

import (
	"context"
	"errors"

	"github.com/batchyard/batchyard/stream"
)

// ErrNoRecord says that a partition has no record at an offset: retention has removed it, the topic was
// recreated, or nothing was ever written there.
var ErrNoRecord = errors.New("there is no such record")

// Read returns the record at an offset of a partition, or [ErrNoRecord].
func Read(ctx context.Context, client *stream.Client, topic string, partition int, offset int64) (*stream.Record, error) {
	first, end, err := client.Bounds(ctx, topic, partition)
	if err != nil {
		return nil, err
	}
	if offset < first || offset >= end {
		return nil, ErrNoRecord
	}
	var found *stream.Record
	err = client.ScanRange(ctx, topic, partition, offset, offset+1, func(r *stream.Record) error {
		if r.Offset == offset {
			found = r
		}
		return nil
	})
	if err == nil && found == nil {
		err = ErrNoRecord
	}
	return found, err
}
