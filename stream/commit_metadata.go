package stream

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// maxMetadata is the longest commit metadata that brokers accept by default
// (offset.metadata.max.bytes).
const maxMetadata = 4096

// metadataVersion starts the metadata, so that later formats can be recognized.
const metadataVersion = "1:"

// span is a range of offsets; end is exclusive.
type span struct{ first, end int64 }

// encodeSpans encodes the finished spans above base as the metadata of a commit: alternating
// lengths of unfinished and finished runs, starting at base. The spans must be sorted,
// disjoint, not adjacent and not empty. Spans that don't fit are left out, and the next owner
// does those records again.
func encodeSpans(base int64, spans []span, limit int) string {
	room := base64.RawURLEncoding.DecodedLen(limit - len(metadataVersion))
	raw := make([]byte, 0, min(room, 8*len(spans)))
	at := base
	for _, s := range spans {
		before := len(raw)
		raw = binary.AppendUvarint(raw, uint64(s.first-at))
		raw = binary.AppendUvarint(raw, uint64(s.end-s.first))
		if len(raw) > room {
			raw = raw[:before]
			break
		}
		at = s.end
	}
	if len(raw) == 0 {
		return ""
	}
	return metadataVersion + base64.RawURLEncoding.EncodeToString(raw)
}

var errForeignMetadata = errors.New("the commit's metadata was not written by Batchyard")

// decodeSpans decodes what encodeSpans wrote. Any tool may have committed for the group, so
// the metadata may be anything; what is not ours is an error.
func decodeSpans(base int64, metadata string) ([]span, error) {
	if metadata == "" {
		return nil, nil
	}
	if len(metadata) < len(metadataVersion) || metadata[:len(metadataVersion)] != metadataVersion || len(metadata) > 4*maxMetadata {
		return nil, errForeignMetadata
	}
	raw, err := base64.RawURLEncoding.DecodeString(metadata[len(metadataVersion):])
	if err != nil {
		return nil, errForeignMetadata
	}
	const most = 1 << 40 // longer than any run; keeps the sum from overflowing
	var spans []span
	at := base
	for len(raw) > 0 {
		gap, n := binary.Uvarint(raw)
		if n <= 0 || gap > most {
			return nil, errForeignMetadata
		}
		length, k := binary.Uvarint(raw[n:])
		if k <= 0 || length == 0 || length > most || (gap == 0 && len(spans) > 0) {
			return nil, errForeignMetadata
		}
		raw = raw[n+k:]
		first := at + int64(gap)
		at = first + int64(length)
		spans = append(spans, span{first, at})
	}
	return spans, nil
}

// inSpans reports whether one of the spans contains the offset.
func inSpans(spans []span, offset int64) bool {
	for _, s := range spans {
		if offset < s.first {
			return false
		}
		if offset < s.end {
			return true
		}
	}
	return false
}
