package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
)

// A hole is a range of records that Kafka deleted before the recorder had read them. A broker that is
// killed soon after it deleted records forgets that it did, and serves them again. By then, the recorder
// has moved on, so these records have no rows. They are part of the hole, and no further problems.
type hole struct {
	audit.Break
	back int64 // records that can be read again
}

// inHole reports whether a record belongs to a hole, and counts it then.
func (l *look) inHole(topic string, partition int, offset int64) bool {
	at := audit.TopicPartition{Topic: topic, Partition: int32(partition)}
	for _, h := range l.holes[at] {
		// Offsets of a topic that has been replaced since mean other records.
		if h.First <= offset && offset <= h.Last && h.Seq >= l.replaced[at] {
			h.back++
			return true
		}
	}
	return false
}

// judgeHoles reports every hole.
func (l *look) judgeHoles() {
	for _, at := range slices.SortedFunc(maps.Keys(l.holes), func(a, b audit.TopicPartition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	}) {
		for _, h := range l.holes[at] {
			what := fmt.Sprintf("Kafka deleted the records %s before they were read, which was noticed at %s", h.Offsets(), h.Time.UTC().Format(time.RFC3339))
			if h.back > 0 {
				what += fmt.Sprintf("; %d of them can be read again (a broker that is killed soon after it deleted records forgets that), but they are not recorded", h.back)
			}
			l.r.wrong(l.before, Problem{Kind: RecordsGone, At: fmt.Sprintf("%s@%d", at, h.First), What: what})
		}
	}
}
