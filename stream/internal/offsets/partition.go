package offsets

import (
	"fmt"
	"sort"
)

// Partition is what a partition holds and what of it a group has finished, at one moment.
type Partition struct {
	Partition  int
	First, End int64 // the partition's first offset, and one above the last that can be read
	Hidden     int64 // records after it, which no consumer can read while a transaction is open

	Next     int64  // the first offset that the group has not finished
	Finished []Span // above it
}

// Committed returns the group's committed offset, or the partition's first offset if that is higher.
func (s *Partition) Committed() int64 { return max(s.Next, s.First) }

// Unfinished reports whether the group has not finished the record at the offset.
func (s *Partition) Unfinished(offset int64) bool {
	if offset < s.Next {
		return false
	}
	i := sort.Search(len(s.Finished), func(i int) bool { return s.Finished[i].End > offset })
	return i == len(s.Finished) || offset < s.Finished[i].First
}

// OpenTransactionError means that records stand behind an open transaction, so no consumer can read them yet.
type OpenTransactionError struct {
	Topic     string
	Partition int
	Records   int64
}

// Error implements error.
func (e *OpenTransactionError) Error() string {
	return fmt.Sprintf("%d records of %s/%d stand behind a Kafka transaction of some client that is still open, so they cannot be read: try again when it has ended, which Kafka enforces after the client's transaction.timeout.ms", e.Records, e.Topic, e.Partition)
}

// CheckReadable returns an [OpenTransactionError] if not all records of a topic can be read.
func CheckReadable(topic string, all []Partition) error {
	for i := range all {
		if s := &all[i]; s.Hidden > 0 {
			return &OpenTransactionError{topic, s.Partition, s.Hidden}
		}
	}
	return nil
}
