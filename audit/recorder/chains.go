package recorder

import (
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// chains are the ends of the chains that a chunk continues. They are read behind the fence, which
// keeps other processes from writing to them until this transaction commits.
type chains map[audit.TopicPartition]*audit.ChainEnd

// of returns the end of a partition's chain; its beginning if it has no rows.
func (c chains) of(part *ownership) *audit.ChainEnd {
	end := c[part.TopicPartition]
	if end == nil {
		end = &audit.ChainEnd{Hash: audit.Genesis(part.TopicPartition)}
		c[part.TopicPartition] = end
	}
	return end
}

const readChainsSQL = `
SELECT c.topic, c.partition, c.rows, c.hash FROM audit_chains c
JOIN unnest($1::text[], $2::int[]) AS u (topic, partition) ON c.topic = u.topic AND c.partition = u.partition`

// queueRead adds to a batch a query of the ends of the chains of a chunk.
func (c chains) queueRead(b *pgx.Batch, of advance) {
	topics, parts := make([]string, 0, len(of)), make([]int32, 0, len(of))
	for part := range of {
		topics, parts = append(topics, part.Topic), append(parts, part.Partition)
	}
	if len(topics) > 0 {
		c.queueReadOf(b, topics, parts)
	}
}

func (c chains) queueReadOf(b *pgx.Batch, topics []string, parts []int32) {
	b.Queue(readChainsSQL, topics, parts).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var at audit.TopicPartition
			var end audit.ChainEnd
			var sum []byte
			if err := rows.Scan(&at.Topic, &at.Partition, &end.Rows, &sum); err != nil {
				return err
			}
			if len(sum) != len(end.Hash) {
				return fmt.Errorf("the chain of %s ends in a hash of %d bytes instead of %d: audit_chains was changed by hand", at, len(sum), len(end.Hash))
			}
			end.Hash = audit.Hash(sum)
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

// queueWrite adds to a batch the writing of the ends of the chains.
func (c chains) queueWrite(b *pgx.Batch) {
	topics, parts := make([]string, 0, len(c)), make([]int32, 0, len(c))
	rows, hashes := make([]int64, 0, len(c)), make([][]byte, 0, len(c))
	for at, end := range c {
		topics, parts = append(topics, at.Topic), append(parts, at.Partition)
		rows, hashes = append(rows, end.Rows), append(hashes, end.Hash[:])
	}
	if len(topics) > 0 {
		b.Queue(writeChainsSQL, topics, parts, rows, hashes)
	}
}
