package audit

import (
	"crypto/sha256"
	"fmt"

	"github.com/jackc/pgx/v5"
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
	trace_id, duration_ms, model, input_tokens, output_tokens, input_sha256, input_bytes, output_sha256,
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

// chains are the ends of chains while a chunk is written. They are read behind
// the fence, which lets nobody else write to them until we commit.
type chains map[place]*chain

// place is a partition.
type place struct {
	topic     string
	partition int32
}

func (t *tenure) place() place { return place{t.topic, int32(t.partition)} } //nolint:gosec // Kafka counts partitions in 32 bits

// of is the end of a partition's chain; its beginning when nothing was read.
func (c chains) of(t *tenure) *chain {
	end := c[t.place()]
	if end == nil {
		end = &chain{hash: genesis(t.topic, t.place().partition)}
		c[t.place()] = end
	}
	return end
}

const readChainsSQL = `
SELECT c.topic, c.partition, c.rows, c.hash FROM audit_chains c
JOIN unnest($1::text[], $2::int[]) AS u (topic, partition) ON c.topic = u.topic AND c.partition = u.partition`

// queueRead adds to a batch the reading of where the chains of a chunk end.
func (c chains) queueRead(b *pgx.Batch, of map[*tenure]int64) {
	topics, parts := make([]string, 0, len(of)), make([]int32, 0, len(of))
	for t := range of {
		topics, parts = append(topics, t.topic), append(parts, t.place().partition)
	}
	if len(topics) == 0 {
		return
	}
	b.Queue(readChainsSQL, topics, parts).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var at place
			var end chain
			var sum []byte
			if err := rows.Scan(&at.topic, &at.partition, &end.rows, &sum); err != nil {
				return err
			}
			if len(sum) != len(end.hash) {
				return fmt.Errorf("the chain of %s/%d ends in a hash of %d bytes, not %d: audit_chains was changed by hand", at.topic, at.partition, len(sum), len(end.hash))
			}
			end.hash = hash(sum)
			c[at] = &end
		}
		return rows.Err()
	})
}

const writeChainsSQL = `
INSERT INTO audit_chains AS c (topic, partition, rows, hash)
SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bytea[])
ON CONFLICT (topic, partition) DO UPDATE SET rows = excluded.rows, hash = excluded.hash, updated_at = now()
WHERE c.rows < excluded.rows`

// queueWrite adds to a batch the writing of where the chains end now.
func (c chains) queueWrite(b *pgx.Batch) {
	topics, parts := make([]string, 0, len(c)), make([]int32, 0, len(c))
	rows, hashes := make([]int64, 0, len(c)), make([][]byte, 0, len(c))
	for at, end := range c {
		topics, parts = append(topics, at.topic), append(parts, at.partition)
		rows, hashes = append(rows, end.rows), append(hashes, end.hash[:])
	}
	if len(topics) > 0 {
		b.Queue(writeChainsSQL, topics, parts, rows, hashes)
	}
}
