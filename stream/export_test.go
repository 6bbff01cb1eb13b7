package stream

import "github.com/batchyard/batchyard/stream/internal/buckets"

// For the tests that also import stream/records.
var (
	BucketOfEvent = buckets.Of
	PartitionOf   = partitionOf
)
