package audit

import (
	"crypto/sha256"
	"fmt"
)

// Hash is the SHA-256 by which a row is known.
type Hash = [sha256.Size]byte

// ChainEnd is where a chain ends, as table audit_chains has it.
type ChainEnd struct {
	Rows int64 // the number of rows, and so the chain_seq of the last one
	Hash Hash  // row_hash of the last row; [Genesis] before the first
}

// Genesis returns the prev_hash of the first row of a partition's chain.
func Genesis(at TopicPartition) Hash {
	return sha256.Sum256(fmt.Appendf(nil, "batchyard audit chain 1\n%s/%d", at.Topic, at.Partition))
}

// RowHash returns the row_hash of the row that follows the one with the hash prev. fields are
// [HashedColumns] as COPY writes them in binary: for each column its length in four bytes
// (-1: NULL), then its bytes. scratch is overwritten; pass the second result to the next call.
func RowHash(prev Hash, fields, scratch []byte) (Hash, []byte) {
	scratch = append(append(scratch[:0], prev[:]...), fields...)
	return sha256.Sum256(scratch), scratch
}
