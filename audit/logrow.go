package audit

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"
)

// Hex is bytes that people read as hexadecimal digits.
type Hex []byte

// String writes the digits.
func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText is for JSON.
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hex) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// Raw is JSON as it is.
type Raw []byte

// MarshalJSON writes it.
func (r Raw) MarshalJSON() ([]byte, error) {
	if !json.Valid(r) {
		return nil, errors.New("the detail of an audit row is no JSON: audit_log was changed by hand")
	}
	return r, nil
}

// UnmarshalJSON keeps it.
func (r *Raw) UnmarshalJSON(b []byte) error {
	*r = slices.Clone(b)
	return nil
}

// LogColumn is a column of the audit log as text.
type LogColumn struct {
	Name string
	Text func(*LogRow) string // empty for NULL
}

func numberText[N int | int64](n N) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}

func timeText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// LogColumns are all columns, in the order of the table.
var LogColumns = []LogColumn{
	{"time", func(r *LogRow) string { return timeText(r.Time) }},
	{"ingested_at", func(r *LogRow) string { return timeText(r.IngestedAt) }},
	{"tenant", func(r *LogRow) string { return r.Tenant }},
	{"actor_type", func(r *LogRow) string { return r.ActorType }},
	{"actor_id", func(r *LogRow) string { return r.ActorID }},
	{"source_addr", func(r *LogRow) string { return r.SourceAddr }},
	{"user_agent", func(r *LogRow) string { return r.UserAgent }},
	{"action", func(r *LogRow) string { return r.Action }},
	{"resource_type", func(r *LogRow) string { return r.ResourceType }},
	{"resource_id", func(r *LogRow) string { return r.ResourceID }},
	{"outcome", func(r *LogRow) string { return r.Outcome }},
	{"error_class", func(r *LogRow) string { return r.ErrorClass }},
	{"task_id", func(r *LogRow) string { return r.TaskID }},
	{"job_id", func(r *LogRow) string { return r.JobID }},
	{"batch_id", func(r *LogRow) string { return r.BatchID }},
	{"device_id", func(r *LogRow) string { return r.DeviceID }},
	{"attempt", func(r *LogRow) string { return numberText(r.Attempt) }},
	{"trace_id", func(r *LogRow) string { return r.TraceID }},
	{"duration_ms", func(r *LogRow) string {
		if r.DurationMS == 0 {
			return ""
		}
		return strconv.FormatFloat(r.DurationMS, 'f', -1, 64)
	}},
	{"model", func(r *LogRow) string { return r.Model }},
	{"input_tokens", func(r *LogRow) string { return numberText(r.TokensIn) }},
	{"output_tokens", func(r *LogRow) string { return numberText(r.TokensOut) }},
	{"input_sha256", func(r *LogRow) string { return r.InputSHA256.String() }},
	{"input_bytes", func(r *LogRow) string { return numberText(r.InputBytes) }},
	{"output_sha256", func(r *LogRow) string { return r.OutputSHA256.String() }},
	{"output_bytes", func(r *LogRow) string { return numberText(r.OutputBytes) }},
	{"detail", func(r *LogRow) string { return string(r.Detail) }},
	{"src_topic", func(r *LogRow) string { return r.SrcTopic }},
	{"src_partition", func(r *LogRow) string { return strconv.Itoa(r.SrcPartition) }},
	{"src_offset", func(r *LogRow) string { return strconv.FormatInt(r.SrcOffset, 10) }},
	{"src_index", func(r *LogRow) string { return strconv.Itoa(r.SrcIndex) }},
	{"chain_seq", func(r *LogRow) string { return numberText(r.ChainSeq) }},
	{"prev_hash", func(r *LogRow) string { return r.PrevHash.String() }},
	{"row_hash", func(r *LogRow) string { return r.RowHash.String() }},
}

// FindLogColumn looks a column up by its name.
func FindLogColumn(name string) (LogColumn, bool) {
	i := slices.IndexFunc(LogColumns, func(c LogColumn) bool { return c.Name == name })
	if i < 0 {
		return LogColumn{}, false
	}
	return LogColumns[i], true
}
