// Package offsets holds the finished offsets of a partition as spans, and keeps them in the
// metadata of a commit.
package offsets

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
)

// MaxMetadata is the longest commit metadata that brokers accept by default
// (offset.metadata.max.bytes).
const MaxMetadata = 4096

// metadataVersion starts the metadata, so that later formats can be recognized.
const metadataVersion = "1:"

// Span is a range of offsets; end is exclusive.
type Span struct{ First, End int64 }

// Encode encodes the finished spans above base as the metadata of a commit: alternating
// lengths of unfinished and finished runs, starting at base. The spans must be sorted,
// disjoint, not adjacent and not empty. Spans that don't fit are left out, and the next owner
// does those records again; named is how many did fit.
func Encode(base int64, spans []Span, limit int) (metadata string, named int) {
	room := base64.RawURLEncoding.DecodedLen(limit - len(metadataVersion))
	raw := make([]byte, 0, min(room, 8*len(spans)))
	at := base
	for _, s := range spans {
		before := len(raw)
		raw = binary.AppendUvarint(raw, uint64(s.First-at))
		raw = binary.AppendUvarint(raw, uint64(s.End-s.First))
		if len(raw) > room {
			raw = raw[:before]
			break
		}
		at = s.End
		named++
	}
	if len(raw) == 0 {
		return "", 0
	}
	return metadataVersion + base64.RawURLEncoding.EncodeToString(raw), named
}

// ErrForeign means that another program committed: its metadata says nothing about single records.
var ErrForeign = errors.New("the commit's metadata was not written by Batchyard")

// Decode decodes what Encode wrote. Any tool may have committed for the group, so
// the metadata may be anything; what is not ours is an error.
func Decode(base int64, metadata string) ([]Span, error) {
	if metadata == "" {
		return nil, nil
	}
	if len(metadata) < len(metadataVersion) || metadata[:len(metadataVersion)] != metadataVersion || len(metadata) > 4*MaxMetadata {
		return nil, ErrForeign
	}
	raw, err := base64.RawURLEncoding.DecodeString(metadata[len(metadataVersion):])
	if err != nil {
		return nil, ErrForeign
	}
	const most = 1 << 40 // longer than any run; keeps the sum from overflowing
	var spans []Span
	at := base
	for len(raw) > 0 {
		gap, n := binary.Uvarint(raw)
		if n <= 0 || gap > most {
			return nil, ErrForeign
		}
		length, k := binary.Uvarint(raw[n:])
		if k <= 0 || length == 0 || length > most || (gap == 0 && len(spans) > 0) {
			return nil, ErrForeign
		}
		raw = raw[n+k:]
		first := at + int64(gap)
		at = first + int64(length)
		spans = append(spans, Span{first, at})
	}
	return spans, nil
}

// Contains reports whether one of the spans contains the offset.
func Contains(spans []Span, offset int64) bool {
	for _, s := range spans {
		if offset < s.First {
			return false
		}
		if offset < s.End {
			return true
		}
	}
	return false
}

// topicPrefix precedes the id of the topic in the metadata of a commit; the spans follow it.
const topicPrefix = "topic="

// OfTopic adds the id of the topic that the offset belongs to. An empty id adds nothing.
func OfTopic(id, spans string) string {
	if id == "" {
		return spans
	}
	return topicPrefix + id + ";" + spans
}

// CutTopic returns the id that OfTopic added, or "" without one, and the spans.
func CutTopic(metadata string) (id, spans string) {
	rest, ok := strings.CutPrefix(metadata, topicPrefix)
	if !ok {
		return "", metadata
	}
	id, spans, _ = strings.Cut(rest, ";")
	return id, spans
}
