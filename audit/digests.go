package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// RowTable says which table a [RowDigest] is about, and which columns it covers.
type RowTable byte

// The tables. Their numbers are in the log: append only.
const (
	ResultRows   RowTable = 1 // [ResultColumns]; the version is the generation
	TaskRows     RowTable = 2 // [TaskColumns]; the version is tasks.version
	CallbackRows RowTable = 3 // [CallbackColumns], which never change; the version is 0
	JobRows      RowTable = 4 // [JobColumns]; the version is jobs.version
	DeliveryRows RowTable = 5 // [DeliveryColumns]; the version is callbacks.attempts
	OffsetRows   RowTable = 6 // stream_offsets: no digest, but an [Advance]
)

// The columns that digests cover, in the order in which they are hashed. The first two identify the
// row, or are the beginning of what does. results.recorded_at and callbacks.created_at are not among them: they
// are the ingested_at of the audit row that has the digest.
const (
	ResultColumns = `tenant, task_id, state, status, output, error_class, error_message, attempt, attempts, input_tokens, output_tokens,
	device_id, model, requested_model, endpoint, priority, job_id, custom_id, labels, callback_url, trace_id,
	submitted_at, assigned_at, started_at, finished_at, generation, fingerprint`
	TaskColumns = `tenant, task_id, state, seq, attempt, device_id, model, error_class, error_message, updated_at, finished_at,
	assigned_at, started_at, known_from, submitted_at, deadline, endpoint, priority, job_id, custom_id, trace_id, callback_url, generation, fingerprint,
	input_tokens, output_tokens`
	CallbackColumns = `callback_id, tenant, task_id, generation, job_id, body, url, host`
	DeliveryColumns = `callback_id, tenant, state, attempts, last_status, last_error, delivered_at`
	JobColumns      = `tenant, job_id, fingerprint, tasks, lines, bad_lines, bytes, file, format, labels, callback_url, submitted_at, submitted_by,
	cancel_requested_at, finished_at, rounds, summary`
)

// RowKey is the beginning of the SHA-256 of the first two columns, by which a digest says which row it is of
// without naming it.
type RowKey [16]byte

// RowDigest is what the log says about a row of another table: what it was when it was written. Of several
// digests of a row, that with the highest version says what it is. Digests are in the column row_digests of the
// last audit row of the transaction that wrote the rows.
type RowDigest struct {
	Table   RowTable
	Key     RowKey
	Version uint32 // the lowest 32 bits
	Digest  Hash   // SHA-256 of the columns, as COPY writes them in binary
}

// DigestWidth is the number of bytes of a digest in the log.
const DigestWidth = 1 + 16 + 4 + sha256.Size

// DigestRow returns the digest of a row. fields are its columns as COPY writes them in binary: for each its
// length in four bytes (-1: NULL), then its bytes.
func DigestRow(table RowTable, version int64, fields []byte) RowDigest {
	d := RowDigest{Table: table, Version: uint32(version), Digest: sha256.Sum256(fields)} //nolint:gosec // the lowest 32 bits
	d.Key = KeyOfRow(fields)
	return d
}

// KeyOfRow returns the key of a row.
func KeyOfRow(fields []byte) (k RowKey) {
	end := 0
	for range 2 {
		if len(fields)-end < 4 {
			break
		}
		n := int(int32(binary.BigEndian.Uint32(fields[end:]))) //nolint:gosec // two's complement
		end = min(end+4+max(n, 0), len(fields))
	}
	sum := sha256.Sum256(fields[:end])
	copy(k[:], sum[:])
	return k
}

// Append appends the digest as it is in the log: table, key, version (big-endian), digest.
func (d *RowDigest) Append(b []byte) []byte {
	b = append(append(b, byte(d.Table)), d.Key[:]...)
	b = binary.BigEndian.AppendUint32(b, d.Version)
	return append(b, d.Digest[:]...)
}

// Advance is how far a transaction has recorded a partition. It is written like a digest, of the row of
// stream_offsets. The advances of a partition follow each other without a gap, because each transaction continues where
// the one before has ended, whether the records in between have rows of their own or not.
type Advance struct {
	Key      RowKey // [KeyOfPartition]
	Epoch    int64  // of the owner: it grows with each one
	From, To int64  // offsets: of the first record, -1 for the first there was, and the next one to be recorded
}

// KeyOfPartition returns the key of the row of a partition in stream_offsets.
func KeyOfPartition(at TopicPartition) RowKey {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(at.Topic))) //nolint:gosec // the length of a name
	b = append(append(b, at.Topic...), 0, 0, 0, 4)
	return KeyOfRow(binary.BigEndian.AppendUint32(b, uint32(at.Partition))) //nolint:gosec // two's complement
}

// Append appends the advance as it is in the log: where a digest has its hash, it has from, to and epoch in eight
// bytes each (big-endian), and zeros.
func (a *Advance) Append(b []byte) []byte {
	d := RowDigest{Table: OffsetRows, Key: a.Key, Version: uint32(a.Epoch)} //nolint:gosec // the lowest 32 bits
	for i, n := range []int64{a.From, a.To, a.Epoch} {
		binary.BigEndian.PutUint64(d.Digest[8*i:], uint64(n)) //nolint:gosec // two's complement
	}
	return d.Append(b)
}

// ReadAdvances calls fn for each advance in a value of row_digests.
func ReadAdvances(b []byte, fn func(Advance)) {
	for ; len(b) >= DigestWidth; b = b[DigestWidth:] {
		if RowTable(b[0]) != OffsetRows {
			continue
		}
		number := func(i int) int64 { return int64(binary.BigEndian.Uint64(b[21+8*i:])) } //nolint:gosec // two's complement
		fn(Advance{Key: RowKey(b[1:17]), From: number(0), To: number(1), Epoch: number(2)})
	}
}

// ReadDigests calls fn for each digest in a value of row_digests. The digest is valid until the next call.
func ReadDigests(b []byte, fn func(*RowDigest)) error {
	var d RowDigest
	for ; len(b) >= DigestWidth; b = b[DigestWidth:] {
		d.Table = RowTable(b[0])
		copy(d.Key[:], b[1:])
		d.Version = binary.BigEndian.Uint32(b[17:])
		copy(d.Digest[:], b[21:])
		fn(&d)
	}
	if len(b) > 0 {
		return fmt.Errorf("%d bytes at the end are no digest", len(b))
	}
	return nil
}

// digestsDetail is the part of an event's detail that has digests: of rows that another process than a recorder
// has written.
type digestsDetail struct {
	Digests string `json:"digests"`
}

// TextOfDigests returns digests in the form in which the detail of an event has them.
func TextOfDigests(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// DigestsInDetail returns the digests in the detail of an event; nil if it has none.
func DigestsInDetail(detail []byte) ([]byte, error) {
	var d digestsDetail
	if err := json.Unmarshal(detail, &d); err != nil {
		return nil, errors.New("the detail is not a JSON object")
	}
	return base64.StdEncoding.DecodeString(d.Digests)
}
