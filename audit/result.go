package audit

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/batchyard/batchyard/task"
)

// resultWidth is the number of columns in [ResultColumns].
const resultWidth = 27

// provenResults decodes rows of results and checks that a value of row_digests has their digests, in the same order.
func provenResults(rows [][]byte, digests []byte) (out []*task.Result, err error) {
	err = ReadDigests(digests, func(d *RowDigest) {
		if d.Table != ResultRows || len(out) == len(rows) {
			return
		}
		// What is decoded before the digest matches is only the generation, which the digest covers too.
		r, err := resultOf(rows[len(out)])
		if err == nil && DigestRow(ResultRows, int64(r.Generation), rows[len(out)]) == *d {
			out = append(out, r)
		}
	})
	if err != nil || len(out) != len(rows) {
		return nil, errors.New("a result beside the row is not one whose digest the row has")
	}
	return out, nil
}

// resultOf decodes [ResultColumns] as COPY writes them in binary.
func resultOf(b []byte) (*task.Result, error) {
	f, err := splitColumns(b, resultWidth)
	if err != nil {
		return nil, err
	}
	text := func(i int) string { return string(f[i]) }
	r := &task.Result{
		Tenant: text(0), TaskID: text(1), State: task.State(text(2)), Status: int(intOf(f[3])), Output: f[4], Usage: task.Usage{InputTokens: intOf(f[9]), OutputTokens: intOf(f[10])},
		DeviceID: text(11), Model: text(12), RequestedModel: text(13), Endpoint: text(14), Priority: task.Priority(text(15)), JobID: text(16), CustomID: text(17), TraceID: text(20),
		SubmittedAt: timeOf(f[21]), AssignedAt: timeOf(f[22]), StartedAt: timeOf(f[23]), FinishedAt: timeOf(f[24]), Generation: int(intOf(f[25])), Fingerprint: hex.EncodeToString(f[26]),
	}
	if f[5] != nil || f[6] != nil {
		r.Error = &task.Error{Class: task.ErrorClass(text(5)), Message: text(6)}
	}
	if f[19] != nil {
		r.Callback = &task.Callback{URL: text(19)}
	}
	if f[8] != nil {
		if err := json.Unmarshal(f[8], &r.Attempts); err != nil {
			return nil, errors.New("the attempts of a result are malformed")
		}
	}
	if f[18] != nil {
		if err := json.Unmarshal(f[18], &r.Labels); err != nil {
			return nil, errors.New("the labels of a result are malformed")
		}
	}
	return r, nil
}

// intOf returns an integer or bigint; 0 for NULL.
func intOf(b []byte) int64 {
	switch len(b) {
	case 4:
		return int64(int32(binary.BigEndian.Uint32(b))) //nolint:gosec // two's complement
	case 8:
		return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // two's complement
	}
	return 0
}

// timeOf returns a timestamptz; the zero time for NULL.
func timeOf(b []byte) time.Time {
	if len(b) != 8 {
		return time.Time{}
	}
	const epoch = 946684800000000 // of Postgres, in microseconds
	return time.UnixMicro(intOf(b) + epoch).UTC()
}
