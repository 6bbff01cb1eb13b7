// Package wire encodes and decodes tasks, results, events, assignments and batches.
//
// In the topics that users write and read (tasks.*, results, dlq) a record is one task or
// one result, as JSON or as MessagePack with named fields: see [DecodeTask], [EncodeTask],
// [DecodeResult], [EncodeResult]. In the internal topics (assignments, batches, events) a
// record is a frame of many entries in positional MessagePack: see [EncodeFrame] and
// [DecodeFrame].
//
// All decoders accept untrusted bytes: they check lengths against the remaining bytes before
// they allocate, and limit nesting and counts. JSON that looks as expected is read in a
// single pass; anything else falls back to encoding/json, which decides.
package wire
