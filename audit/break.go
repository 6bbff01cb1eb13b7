package audit

import (
	"encoding/json"
	"fmt"
	"time"
)

// BreakKind says why recording could not simply continue.
type BreakKind string

// The kinds of breaks.
const (
	// RecordedAgain: Postgres had lost rows that it had confirmed, as after a failover to a replica
	// that lagged. The recorder recorded them again from Kafka.
	RecordedAgain BreakKind = "recorded_again"
	// TopicReplaced: the topic was deleted and created again, belongs to another cluster, or lost its
	// last records. The recorder continued at the beginning of what there is now.
	TopicReplaced BreakKind = "topic_replaced"
	// RecordsMissed: Kafka deleted records before they were recorded. The recorder continued after
	// them.
	RecordsMissed BreakKind = "records_missed"
)

// UnknownOffset is the last offset of a break whose end is unknown.
const UnknownOffset = -1

// Break is a place where recording could not simply continue. The recorder that noticed it signs it as a
// [Statement], and only then continues. So someone who can write to the database, and changes the log,
// cannot claim that a recorder did it.
type Break struct {
	Kind      BreakKind `json:"kind"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Seq       int64     `json:"chain_seq"`           // number of the first row recorded afterwards
	First     int64     `json:"first_offset"`        // of the first record that was recorded again, or was not recorded
	Last      int64     `json:"last_offset"`         // of the last such record, or [UnknownOffset]
	LostRows  int64     `json:"lost_rows,omitempty"` // of the chain, that the recorder knew of
	Why       string    `json:"why,omitempty"`       // how it was noticed, for people
	Time      time.Time `json:"time"`                // when it was noticed
	ActorID   string    `json:"actor_id"`            // the recorder that noticed it
}

// At returns the partition of the break.
func (b *Break) At() TopicPartition {
	return TopicPartition{Topic: b.Topic, Partition: b.Partition}
}

// Hole reports whether records of the partition may never have been recorded, and never will be.
func (b *Break) Hole() bool {
	return b.Kind == RecordsMissed || b.Kind == TopicReplaced && b.Last == UnknownOffset
}

// Offsets returns the range of offsets, for people.
func (b *Break) Offsets() string {
	if b.Last == UnknownOffset {
		return fmt.Sprintf("from %d on", b.First)
	}
	return fmt.Sprintf("%d to %d", b.First, b.Last)
}

// breakDetail is what an event says about a break.
type breakDetail struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	First     int64  `json:"first_offset"`
	Last      *int64 `json:"last_offset,omitempty"` // nil: unknown
	LostRows  int64  `json:"lost_rows,omitempty"`
	Why       string `json:"why,omitempty"`
}

// Detail returns the detail of the event of a break.
func (b *Break) Detail() []byte {
	d := breakDetail{Topic: b.Topic, Partition: b.Partition, First: b.First, LostRows: b.LostRows, Why: b.Why}
	if b.Last != UnknownOffset {
		d.Last = &b.Last
	}
	text, _ := json.Marshal(d) // text and numbers: it cannot fail
	return text
}

// BreakOf returns the break that an event with the detail is about.
func BreakOf(kind BreakKind, detail []byte) (*Break, error) {
	var d breakDetail
	if err := json.Unmarshal(detail, &d); err != nil {
		return nil, fmt.Errorf("reading the detail of a break: %w", err)
	}
	b := &Break{Kind: kind, Topic: d.Topic, Partition: d.Partition, First: d.First, Last: UnknownOffset, LostRows: d.LostRows, Why: d.Why}
	if d.Last != nil {
		b.Last = *d.Last
	}
	return b, nil
}
