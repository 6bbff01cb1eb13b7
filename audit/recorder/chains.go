package recorder

import (
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// chains are the ends of the chains that a chunk continues. They are read behind the fence, which
// keeps other processes from writing to them until this transaction commits.
type chains map[audit.TopicPartition]*chainEnd

// chainEnd is where a chain ends, and the tree over its rows.
type chainEnd struct {
	audit.ChainEnd
	tree audit.Edge
	kept []audit.Node // of the tree, completed since the end was read, for audit_tree
}

// newChainEnd returns the end of a chain without rows.
func newChainEnd(at audit.TopicPartition) *chainEnd {
	return &chainEnd{ChainEnd: audit.ChainEnd{Hash: audit.Genesis(at)}}
}

// of returns the end of a partition's chain; its beginning if it has no rows.
func (c chains) of(part *ownership) *chainEnd {
	end := c[part.TopicPartition]
	if end == nil {
		end = newChainEnd(part.TopicPartition)
		c[part.TopicPartition] = end
	}
	return end
}

const readChainsSQL = `
SELECT c.topic, c.partition, c.rows, c.hash, c.edge FROM audit_chains c
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
			var end chainEnd
			var sum, edge []byte
			if err := rows.Scan(&at.Topic, &at.Partition, &end.Rows, &sum, &edge); err != nil {
				return err
			}
			if len(sum) != len(end.Hash) {
				return fmt.Errorf("the chain of %s ends in a hash of %d bytes instead of %d: audit_chains was changed by hand", at, len(sum), len(end.Hash))
			}
			end.Hash = audit.Hash(sum)
			var err error
			if end.tree, err = audit.ParseEdge(end.Rows, edge); err != nil {
				return fmt.Errorf("audit_chains has for %s %w: it was changed by hand", at, err)
			}
			c[at] = &end
		}
		return rows.Err()
	})
}

const writeChainsSQL = `
INSERT INTO audit_chains AS c (topic, partition, rows, hash, edge)
SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bytea[], $5::bytea[])
ON CONFLICT (topic, partition) DO UPDATE SET rows = excluded.rows, hash = excluded.hash, edge = excluded.edge, updated_at = now()
WHERE c.rows < excluded.rows`

// writeTreeSQL overwrites what is there: only someone else can have written it.
const writeTreeSQL = `
INSERT INTO audit_tree (topic, partition, level, node, hash)
SELECT * FROM unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[], $5::bytea[])
ON CONFLICT (topic, partition, level, node) DO UPDATE SET hash = excluded.hash`

// queueWrite adds to a batch the writing of the ends of the chains, and of their trees.
func (c chains) queueWrite(b *pgx.Batch) {
	topics, parts := make([]string, 0, len(c)), make([]int32, 0, len(c))
	rows, hashes, edges := make([]int64, 0, len(c)), make([][]byte, 0, len(c)), make([][]byte, 0, len(c))
	for at, end := range c {
		topics, parts = append(topics, at.Topic), append(parts, at.Partition)
		rows, hashes, edges = append(rows, end.Rows), append(hashes, end.Hash[:]), append(edges, end.tree.Bytes())
	}
	if len(topics) > 0 {
		b.Queue(writeChainsSQL, topics, parts, rows, hashes, edges)
	}
	c.queueKept(b)
}

// queueKept adds to a batch the writing of the nodes of the trees that are kept: one for 256 rows.
func (c chains) queueKept(b *pgx.Batch) {
	var topics []string
	var parts []int32
	var levels []int16
	var nodes []int64
	var hashes [][]byte
	for at, end := range c {
		for i := range end.kept {
			n := &end.kept[i]
			topics, parts, levels = append(topics, at.Topic), append(parts, at.Partition), append(levels, int16(n.Level))
			nodes, hashes = append(nodes, n.Index), append(hashes, n.Hash[:])
		}
	}
	if len(topics) > 0 {
		b.Queue(writeTreeSQL, topics, parts, levels, nodes, hashes)
	}
}
