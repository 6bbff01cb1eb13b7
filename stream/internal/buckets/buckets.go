// Package buckets assigns events to the partitions of the topic events.
package buckets

import (
	"hash/fnv"

	"github.com/batchyard/batchyard/stream/internal/murmur"
	"github.com/batchyard/batchyard/task"
)

// Of keeps the events of one task, or of one other resource, in one partition. If the
// topics of events and results have equally many partitions, a task's events are in the same
// one as its result, so the same recorder reads both at about the same time.
func Of(e *task.Event, n int) int {
	if e.TaskID != "" {
		return int(murmur.Partition(e.TaskID, n))
	}
	return bucketOf([]byte(e.Tenant+"\x00"+e.ResourceType+"\x00"+e.ResourceID), n)
}

// Size estimates the bytes that an event takes in a frame.
func Size(e *task.Event) int {
	return 200 + len(e.Tenant) + len(e.ActorID) + len(e.SourceAddr) + len(e.UserAgent) + len(e.ResourceType) + len(e.ResourceID) +
		len(e.TaskID) + len(e.JobID) + len(e.BatchID) + len(e.DeviceID) + len(e.TraceID) + len(e.Model) +
		len(e.InputSHA256) + len(e.OutputSHA256) + len(e.Detail) + len(e.Endpoint) + len(e.CustomID)
}

// bucketOf assigns bytes to one of n buckets by their hash.
func bucketOf(b []byte, n int) int {
	h := fnv.New32a()
	_, _ = h.Write(b)
	return int(h.Sum32() % uint32(n))
}
