package wire

import (
	"bytes"
	"strings"

	"github.com/batchyard/batchyard/task"
)

const oneRecord = "send one JSON object or MessagePack map per record"

// Format returns what a content type says about the format: [ContentJSON], [ContentMsgpack],
// or "" if only the bytes can tell (no content type, or application/octet-stream). Content
// types may be in any case, have parameters, be quoted as a whole, as some clients write
// headers, and end in +json or +msgpack. ok is false for other content types.
func Format(contentType string) (format string, ok bool) {
	switch contentType { // as most clients write it
	case ContentJSON, ContentMsgpack, "":
		return contentType, true
	}
	unquote := func(s string) string { return strings.TrimSpace(strings.Trim(strings.TrimSpace(s), `"'`)) }
	kind, _, _ := strings.Cut(unquote(contentType), ";")
	switch kind = strings.ToLower(unquote(kind)); kind {
	case "", "application/octet-stream", "binary/octet-stream":
		return "", true
	case ContentJSON, "text/json", "application/x-json":
		return ContentJSON, true
	case ContentMsgpack, "application/x-msgpack", "application/vnd.msgpack", "application/messagepack", "application/x-messagepack":
		return ContentMsgpack, true
	}
	switch {
	case strings.HasSuffix(kind, "+json"):
		return ContentJSON, true
	case strings.HasSuffix(kind, "+msgpack"):
		return ContentMsgpack, true
	}
	return "", false
}

// open returns the content of a record without what some clients write in front of it, and
// its format.
func open(b []byte, contentType string) (content []byte, format string, err error) {
	format, ok := Format(contentType)
	if !ok {
		return nil, "", task.NewFieldError("content-type", "use application/json or application/msgpack, or omit the header", "it is neither JSON nor MessagePack")
	}
	if b, err = Content(b); err != nil {
		return nil, "", err
	}
	if len(b) == 0 {
		return nil, "", task.NewFieldError("", oneRecord, "the record is empty")
	}
	if format != "" {
		return b, format, nil
	}
	switch c := b[0]; {
	case c == '{' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
		return b, ContentJSON, nil
	case isMap(c):
		return b, ContentMsgpack, nil
	}
	return nil, "", task.NewFieldError("", oneRecord, "the record is neither JSON nor MessagePack (first byte 0x%02x)", b[0])
}

// isMap reports whether a MessagePack value with this first byte is a map.
func isMap(c byte) bool { return c&0xf0 == 0x80 || c == 0xde || c == 0xdf }

var utf8BOM = []byte("\xef\xbb\xbf")

// Content returns b without byte order marks and without the prefix of Confluent's
// serializers in front of JSON or MessagePack. UTF-16 and UTF-32 are errors, *FieldError. It
// costs nothing if the first byte is that of a record.
func Content(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return b, nil
	}
	switch b[0] {
	case utf8BOM[0]:
		for bytes.HasPrefix(b, utf8BOM) {
			b = b[len(utf8BOM):]
		}
	case 0, 0xfe, 0xff:
		if name := WideText(b); name != "" {
			return nil, wide(name)
		}
		if b[0] == 0 {
			return withoutSchema(b)
		}
	case '{', '[', ' ':
		if len(b) < 2 || b[1] != 0 {
			break
		}
		if name := WideText(b); name != "" {
			return nil, wide(name)
		}
	}
	return b, nil
}

func wide(name string) error { return task.NewFieldError("", "send it as UTF-8", "it is %s", name) }

// WideText returns UTF-16 or UTF-32 if that is what b begins with: with a byte order mark, or
// without one in front of JSON. Otherwise it returns "".
func WideText(b []byte) string {
	begins := func(with string) bool { return bytes.HasPrefix(b, []byte(with)) }
	switch {
	case begins("\x00\x00\xfe\xff") || begins("\xff\xfe\x00\x00"):
		return "UTF-32"
	case begins("\xfe\xff") || begins("\xff\xfe"):
		return "UTF-16"
	case len(b) < 4:
		return ""
	}
	first := func(c byte) bool { return c == '{' || c == '[' || c == ' ' }
	switch {
	case b[0] == 0 && b[1] == 0 && b[2] == 0 && first(b[3]) || first(b[0]) && b[1] == 0 && b[2] == 0 && b[3] == 0:
		return "UTF-32"
	case b[0] == 0 && first(b[1]) && b[2] == 0 || first(b[0]) && b[1] == 0 && b[3] == 0:
		return "UTF-16"
	}
	return ""
}

// withoutSchema skips the prefix that Confluent's serializers write: a zero, and four bytes
// that number the schema. What follows is JSON if the serializer is that for JSON Schema.
func withoutSchema(b []byte) ([]byte, error) {
	const prefix = 5
	if len(b) > prefix {
		if c := b[prefix]; c == '{' || c == ' ' || c == '\t' || c == '\r' || c == '\n' || isMap(c) {
			return b[prefix:], nil
		}
		return nil, task.NewFieldError("", "use a serializer for JSON, such as that for JSON Schema",
			"it begins with the prefix of Confluent's serializers (a zero and the number of a schema), but neither JSON nor MessagePack follows")
	}
	return nil, task.NewFieldError("", oneRecord, "the record is neither JSON nor MessagePack (first byte 0x00)")
}
