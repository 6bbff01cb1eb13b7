package audit

import (
	"crypto/ed25519"
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

// Break is a place where recording could not simply continue. The recorder that noticed it signs it
// like a checkpoint, and only then continues. So someone who can write to the database, and changes
// the log, cannot claim that a recorder did it.
type Break struct {
	Version   int       `json:"version"` // 1
	Kind      BreakKind `json:"kind"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Seq       int64     `json:"chain_seq"`    // number of the first row recorded afterwards
	First     int64     `json:"first_offset"` // of the first record that was recorded again, or was not recorded
	Last      int64     `json:"last_offset"`  // of the last such record, or [UnknownOffset]
	LostRows  int64     `json:"lost_rows,omitempty"`
	Why       string    `json:"why,omitempty"` // how it was noticed, for people
	Time      time.Time `json:"time"`          // when it was noticed
	ActorID   string    `json:"actor_id"`      // the recorder that noticed it
	Signer    string    `json:"signer"`        // [KeyID] of the signing key
}

const (
	breakVersion = 1
	breakDomain  = "batchyard audit break 1\n"
)

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

// Sign returns the break as one signed line. It sets Version and Signer.
func (b *Break) Sign(key ed25519.PrivateKey) ([]byte, error) {
	b.Version = breakVersion
	b.Signer = KeyID(key.Public().(ed25519.PublicKey)) //nolint:errcheck // Ed25519 keys have no other
	line, err := signLine(breakDomain, b, key)
	if err != nil {
		return nil, fmt.Errorf("encoding a break of %s: %w", b.At(), err)
	}
	return line, nil
}

// ParseBreak parses the line of a break, and reports whether one of the keys, by their ids, has
// signed it. The error completes a sentence that begins with where the line is from.
func ParseBreak(line []byte, keys map[string]ed25519.PublicKey) (b *Break, signed bool, err error) {
	body, signature, err := parseLine(line)
	if err != nil {
		return nil, false, err
	}
	b = &Break{}
	if err := json.Unmarshal(append(body[:len(body):len(body)], '}'), b); err != nil {
		return nil, false, fmt.Errorf("not the JSON of a break: %w", err)
	}
	if b.Version != breakVersion {
		return nil, false, fmt.Errorf("version %d, but this program knows only version %d: use the version of batchyard that wrote it", b.Version, breakVersion)
	}
	key, ok := keys[b.Signer]
	signed = ok && len(signature) == ed25519.SignatureSize && ed25519.Verify(key, append([]byte(breakDomain), body...), signature)
	return b, signed, nil
}
