package query

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/internal/pg"
)

// Hex is bytes that are shown as hexadecimal digits.
type Hex []byte

// String returns the digits.
func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// Raw is JSON as it is stored.
type Raw []byte

// MarshalJSON implements [json.Marshaler].
func (r Raw) MarshalJSON() ([]byte, error) {
	if !json.Valid(r) {
		return nil, errors.New("the detail of an audit row is not JSON: audit_log was changed by hand")
	}
	return r, nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (r *Raw) UnmarshalJSON(b []byte) error {
	*r = slices.Clone(b)
	return nil
}

// Column is a column of the audit log as text.
type Column struct {
	Name string
	Text func(*Row) string // empty for NULL
}

func numberText[N int | int64](n N) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}

func timeText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// Columns are all columns, in the order of the table.
var Columns = []Column{
	{"time", func(r *Row) string { return timeText(r.Time) }},
	{"ingested_at", func(r *Row) string { return timeText(r.IngestedAt) }},
	{"tenant", func(r *Row) string { return r.Tenant }},
	{"actor_type", func(r *Row) string { return r.ActorType }},
	{"actor_id", func(r *Row) string { return r.ActorID }},
	{"source_addr", func(r *Row) string { return r.SourceAddr }},
	{"user_agent", func(r *Row) string { return r.UserAgent }},
	{"action", func(r *Row) string { return r.Action }},
	{"resource_type", func(r *Row) string { return r.ResourceType }},
	{"resource_id", func(r *Row) string { return r.ResourceID }},
	{"outcome", func(r *Row) string { return r.Outcome }},
	{"error_class", func(r *Row) string { return r.ErrorClass }},
	{"task_id", func(r *Row) string { return r.TaskID }},
	{"job_id", func(r *Row) string { return r.JobID }},
	{"batch_id", func(r *Row) string { return r.BatchID }},
	{"device_id", func(r *Row) string { return r.DeviceID }},
	{"attempt", func(r *Row) string { return numberText(r.Attempt) }},
	{"trace_id", func(r *Row) string { return r.TraceID }},
	{"duration_ms", func(r *Row) string {
		if r.DurationMS == 0 {
			return ""
		}
		return strconv.FormatFloat(r.DurationMS, 'f', -1, 64)
	}},
	{"model", func(r *Row) string { return r.Model }},
	{"input_tokens", func(r *Row) string { return numberText(r.TokensIn) }},
	{"output_tokens", func(r *Row) string { return numberText(r.TokensOut) }},
	{"input_sha256", func(r *Row) string { return r.InputSHA256.String() }},
	{"input_bytes", func(r *Row) string { return numberText(r.InputBytes) }},
	{"output_sha256", func(r *Row) string { return r.OutputSHA256.String() }},
	{"output_bytes", func(r *Row) string { return numberText(r.OutputBytes) }},
	{"detail", func(r *Row) string { return string(r.Detail) }},
	{"src_topic", func(r *Row) string { return r.SrcTopic }},
	{"src_partition", func(r *Row) string { return strconv.Itoa(r.SrcPartition) }},
	{"src_offset", func(r *Row) string { return strconv.FormatInt(r.SrcOffset, 10) }},
	{"src_index", func(r *Row) string { return strconv.Itoa(r.SrcIndex) }},
	{"chain_seq", func(r *Row) string { return numberText(r.ChainSeq) }},
	{"prev_hash", func(r *Row) string { return r.PrevHash.String() }},
	{"row_hash", func(r *Row) string { return r.RowHash.String() }},
}

// FindColumn returns the column with a name.
func FindColumn(name string) (Column, bool) {
	i := slices.IndexFunc(Columns, func(c Column) bool { return c.Name == name })
	if i < 0 {
		return Column{}, false
	}
	return Columns[i], true
}

// Row is a row of the audit log.
type Row struct {
	Time         time.Time `json:"time"`
	IngestedAt   time.Time `json:"ingested_at"`
	Tenant       string    `json:"tenant,omitempty"`
	ActorType    string    `json:"actor_type"`
	ActorID      string    `json:"actor_id"`
	SourceAddr   string    `json:"source_addr,omitempty"`
	UserAgent    string    `json:"user_agent,omitempty"`
	Action       string    `json:"action"`
	ResourceType string    `json:"resource_type,omitempty"`
	ResourceID   string    `json:"resource_id,omitempty"`
	Outcome      string    `json:"outcome"`
	ErrorClass   string    `json:"error_class,omitempty"`
	TaskID       string    `json:"task_id,omitempty"`
	JobID        string    `json:"job_id,omitempty"`
	BatchID      string    `json:"batch_id,omitempty"`
	DeviceID     string    `json:"device_id,omitempty"`
	Attempt      int       `json:"attempt,omitempty"`
	TraceID      string    `json:"trace_id,omitempty"`
	DurationMS   float64   `json:"duration_ms,omitempty"`
	Model        string    `json:"model,omitempty"`
	TokensIn     int64     `json:"input_tokens,omitempty"`
	TokensOut    int64     `json:"output_tokens,omitempty"`
	InputSHA256  Hex       `json:"input_sha256,omitempty"`
	InputBytes   int64     `json:"input_bytes,omitempty"`
	OutputSHA256 Hex       `json:"output_sha256,omitempty"`
	OutputBytes  int64     `json:"output_bytes,omitempty"`
	Detail       Raw       `json:"detail,omitempty"`
	SrcTopic     string    `json:"src_topic"`
	SrcPartition int       `json:"src_partition"`
	SrcOffset    int64     `json:"src_offset"`
	SrcIndex     int       `json:"src_index"`
	ChainSeq     int64     `json:"chain_seq,omitempty"`
	PrevHash     Hex       `json:"prev_hash,omitempty"`
	RowHash      Hex       `json:"row_hash,omitempty"`
}

const selectedColumns = `a.time, a.ingested_at, a.tenant, a.actor_type, a.actor_id, coalesce(a.source_addr, ''), coalesce(a.user_agent, ''), a.action,
	coalesce(a.resource_type, ''), coalesce(a.resource_id, ''), a.outcome, coalesce(a.error_class, ''), coalesce(a.task_id, ''),
	coalesce(a.job_id, ''), coalesce(a.batch_id, ''), coalesce(a.device_id, ''), coalesce(a.attempt, 0), coalesce(a.trace_id, ''),
	coalesce(a.duration_ms, 0), coalesce(a.model, ''), coalesce(a.input_tokens, 0), coalesce(a.output_tokens, 0), a.input_sha256,
	coalesce(a.input_bytes, 0), a.output_sha256, coalesce(a.output_bytes, 0), a.detail::text,
	a.src_topic, a.src_partition, a.src_offset, a.src_index, coalesce(a.chain_seq, 0), a.prev_hash, a.row_hash`

func (r *Row) targets() []any {
	return []any{pg.NullTime(&r.Time), pg.NullTime(&r.IngestedAt), &r.Tenant, &r.ActorType, &r.ActorID, &r.SourceAddr, &r.UserAgent, &r.Action,
		&r.ResourceType, &r.ResourceID, &r.Outcome, &r.ErrorClass, &r.TaskID, &r.JobID, &r.BatchID, &r.DeviceID, &r.Attempt, &r.TraceID,
		&r.DurationMS, &r.Model, &r.TokensIn, &r.TokensOut, (*[]byte)(&r.InputSHA256), &r.InputBytes, (*[]byte)(&r.OutputSHA256), &r.OutputBytes,
		(*[]byte)(&r.Detail), &r.SrcTopic, &r.SrcPartition, &r.SrcOffset, &r.SrcIndex, &r.ChainSeq, (*[]byte)(&r.PrevHash), (*[]byte)(&r.RowHash)}
}
