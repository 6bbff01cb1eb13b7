package offsets

import "sort"

// Partition is what a partition holds and what of it a group has finished, at one moment.
type Partition struct {
	Partition  int
	First, End int64 // the partition's first offset, and one above its last

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
