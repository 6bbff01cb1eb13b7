package jobs

import (
	"bytes"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// formatError means that a line is in a format that jobs do not read. The other lines of its
// file are most likely alike, so one such error is enough.
type formatError struct{ *task.FieldError }

// Unwrap returns what is wrong with the line.
func (e *formatError) Unwrap() error { return e.FieldError }

// others are other formats, by a member that no line of ours has.
var others = []struct{ member, problem string }{
	{"params", "it looks like Anthropic's Message Batches, whose requests are not those of an OpenAI-compatible server"},
	{"requests", "it looks like Anthropic's Message Batches, whose requests are not those of an OpenAI-compatible server"},
	{"request", "it looks like Gemini's batch mode, whose requests are not those of an OpenAI-compatible server"},
	{"contents", "it looks like Gemini's API, whose requests are not those of an OpenAI-compatible server"},
	{"modelInput", "it looks like Amazon Bedrock's batch inference, whose requests are not those of an OpenAI-compatible server"},
	{"recordId", "it looks like Amazon Bedrock's batch inference, whose requests are not those of an OpenAI-compatible server"},
	{"messages", "the line looks like the body of a request alone"},
	{"prompt", "the line looks like the body of a request alone"},
}

// foreign recognises a line of another service's format, and JSON that is not one object on
// each line. It returns nil for other lines.
func foreign(line []byte) *formatError {
	const each = "put one JSON object on each line"
	switch last := line[len(line)-1]; {
	case line[0] == '[' && (len(line) == 1 || last == ']' || last == ',' || last == '{'):
		return &formatError{fieldErr("", each+"; jq -c '.[]' makes lines of an array", "it is a JSON array")}
	case line[0] == '{' && (len(line) == 1 || last == ',' || last == '{' || last == '['):
		return &formatError{fieldErr("", each+"; jq -c . makes lines of longer JSON", "the JSON object does not end on its line")}
	}
	known := false
	found := len(others)
	if !wire.Members(line, func(key string, _ []byte) bool {
		known = known || key == "input" || key == "url" || key == "body"
		for i, o := range others[:found] {
			if o.member == key {
				found = i
			}
		}
		return true
	}) || known || found == len(others) {
		return nil
	}
	o := others[found]
	return &formatError{fieldErr(o.member, "write lines in OpenAI's batch format (custom_id, method, url, body), or tasks (model, input)", "%s", o.problem)}
}

// packedFiles are files that have no lines of text, by their first bytes.
var packedFiles = []struct{ magic, name string }{
	{"PK\x03\x04", "a zip archive"}, {"BZh", "compressed with bzip2"}, {"\xfd7zXZ\x00", "compressed with xz"}, {"7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{"\x04\x22\x4d\x18", "compressed with lz4"}, {"PAR1", "a Parquet file"}, {"SQLite format 3\x00", "a SQLite database"}, {"Obj\x01", "an Avro file"},
}

// checkHead returns why a file that begins with head cannot be a job file, or nil.
func checkHead(head []byte) *task.FieldError {
	if name := wire.WideText(head); name != "" {
		return fieldErr("", "save it as UTF-8, such as with: iconv -f "+name+" -t UTF-8", "the file is %s", name)
	}
	for _, p := range packedFiles {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return fieldErr("", "unpack it to lines of JSON first; gzip and zstd are read as they are", "the file is %s", p.name)
		}
	}
	return nil
}
