package stream

// For the tests that also import stream/records.
var (
	BucketOfEvent = bucketOfEvent
	PartitionOf   = partitionOf
)
