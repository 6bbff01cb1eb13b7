package jobs

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// fingerprint digests what the lines of a file ask for: of each task the number of its line, its
// own id and custom_id, which name the answer, and its fingerprint, in the order of the lines. Two
// files with the same fingerprint get the same output, even if they differ in white space or in
// the order of JSON members. Priorities, labels and callbacks change no answer, and do not count.
type fingerprint struct{ h hash.Hash }

func newFingerprint() fingerprint { return fingerprint{sha256.New()} }

func (f fingerprint) add(line int, q *parsed) {
	own := ""
	if q.ownID {
		own = q.task.ID
	}
	sum := q.task.Fingerprint()
	b := binary.BigEndian.AppendUint64(nil, uint64(line)) //nolint:gosec // lines are counted from 1
	for _, s := range []string{own, q.task.CustomID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s))) //nolint:gosec // ids are short
		b = append(b, s...)
	}
	_, _ = f.h.Write(append(b, sum[:]...)) // a hash takes everything
}

func (f fingerprint) hex() string { return hex.EncodeToString(f.h.Sum(nil)) }
