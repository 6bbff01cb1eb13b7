package audit

import (
	"crypto/sha256"
	"fmt"
)

// Each row of the audit log names the one before it by its hash. There is a
// chain for each partition of the topics that rows are made from: the partition's
// owner is the only one who may write, and it writes in the order of offsets.
//
//	genesis ◀── row 1 ◀── row 2 ◀── … ◀── row n      audit_chains: n, hash of row n
//
// A row's hash is SHA-256 over prev_hash and over the row's other fields as COPY
// writes them in binary: for each of chainColumns, in this order, its length in
// four bytes (-1: NULL) and its bytes. So the writer hashes what it sends, and
// Verify hashes what it gets, and neither decodes anything.

// chainColumns are the columns that a row's hash covers, beside prev_hash.
// A column that comes later goes to the end, under a new name of the genesis.
const chainColumns = `time, ingested_at, tenant, actor_type, actor_id, source_addr, user_agent, action,
	resource_type, resource_id, outcome, error_class, task_id, job_id, batch_id, device_id, attempt,
	trace_id, duration_ms, model, tokens_in, tokens_out, input_sha256, input_bytes, output_sha256,
	output_bytes, detail, src_topic, src_partition, src_offset, src_index, chain_seq`

// chainWidth is the number of columns in chainColumns.
const chainWidth = 32

// hash is what a row is known by.
type hash = [sha256.Size]byte

// chain is where a chain ends.
type chain struct {
	rows int64 // and the number of the last row
	hash hash
}

// genesis is the prev_hash of the first row of a partition's chain.
func genesis(topic string, partition int32) hash {
	return sha256.Sum256(fmt.Appendf(nil, "batchyard audit chain 1\n%s/%d", topic, partition))
}

// link is the hash of a row with the given fields that follows the one with the
// hash prev. scratch is overwritten and may be used again.
func link(prev hash, fields, scratch []byte) (hash, []byte) {
	scratch = append(append(scratch[:0], prev[:]...), fields...)
	return sha256.Sum256(scratch), scratch
}
