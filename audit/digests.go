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
