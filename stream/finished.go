package stream

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// maxMetadata is what brokers take with a commit by default
// (offset.metadata.max.bytes).
const maxMetadata = 4096

// metadataVersion begins the metadata, so that later forms can be told apart.
const metadataVersion = "1:"

// span is the offsets from first up to, not including, end.
type span struct{ first, end int64 }

// encodeSpans writes finished spans above base as the metadata of a commit:
// alternating lengths of unfinished and finished runs, beginning at base. The
// spans are in order, apart and not empty. What does not fit is left out: the
// next owner does it again.
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

var errMetadata = errors.New("the commit's metadata is not ours")

// decodeSpans reads what encodeSpans wrote. Anybody may have committed for the
// group with any tool: what is not ours is an error, and worth nothing.
func decodeSpans(base int64, metadata string) ([]span, error) {
	if metadata == "" {
		return nil, nil
	}
	if len(metadata) < len(metadataVersion) || metadata[:len(metadataVersion)] != metadataVersion || len(metadata) > 4*maxMetadata {
		return nil, errMetadata
	}
	raw, err := base64.RawURLEncoding.DecodeString(metadata[len(metadataVersion):])
	if err != nil {
		return nil, errMetadata
	}
	const most = 1 << 40 // no run is that long; keeps the sum from overflowing
	var spans []span
	at := base
	for len(raw) > 0 {
		gap, n := binary.Uvarint(raw)
		if n <= 0 || gap > most {
			return nil, errMetadata
		}
		length, k := binary.Uvarint(raw[n:])
		if k <= 0 || length == 0 || length > most || (gap == 0 && len(spans) > 0) {
			return nil, errMetadata
		}
		raw = raw[n+k:]
		first := at + int64(gap)
		at = first + int64(length)
		spans = append(spans, span{first, at})
	}
	return spans, nil
}
