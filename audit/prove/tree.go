package prove

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/batchyard/batchyard/audit"
)

// Row is a row of the log, and what proves it.
type Row struct {
	audit.ProvenColumns
	prev, hash audit.Hash
	covered    []byte
	path       []audit.Hash
}

// newRow takes the columns of a row in binary.
func newRow(values [][]byte) (*Row, error) {
	if len(values) != audit.RowWidth || len(values[audit.ColPrev]) != len(audit.Hash{}) || len(values[audit.ColHash]) != len(audit.Hash{}) || len(values[audit.ColSeq]) != 8 || len(values[audit.ColPartition]) != 4 {
		return nil, errors.New("a row of the audit log is malformed: see `batchyard audit verify`")
	}
	r := &Row{prev: audit.Hash(values[audit.ColPrev]), hash: audit.Hash(values[audit.ColHash])}
	for _, v := range values[:audit.ColPrev] {
		if v == nil {
			r.covered = append(r.covered, 0xff, 0xff, 0xff, 0xff)
			r.Fields = append(r.Fields, nil)
			continue
		}
		r.covered = binary.BigEndian.AppendUint32(r.covered, uint32(len(v)))
		r.covered = append(r.covered, v...)
		r.Fields = append(r.Fields, bytes.Clone(v))
	}
	r.Seq = int64(binary.BigEndian.Uint64(values[audit.ColSeq]))
	r.Chain = audit.TopicPartition{Topic: r.Text(audit.ColTopic), Partition: int32(binary.BigEndian.Uint32(values[audit.ColPartition]))}
	return r, nil
}

func (r *Row) line() audit.ProofRow {
	return audit.ProofRow{Chain: r.Chain.String(), Row: r.Seq, Prev: r.prev[:], Fields: r.covered, Path: audit.EncodePath(r.path), Answer: r.Answer}
}

// size is the tree of a chain that a proof leads to.
type size struct {
	rows int64
	root audit.Hash
}

// prover finds the hashes inside the trees.
type prover struct {
	tx     pgx.Tx
	chains map[audit.TopicPartition]size
	name   string // of the checkpoint

	carriers map[carrier][]run // results whose digests a row has, in the order of these
	whole    map[string]bool   // ids of tasks with a result among them

	leaves map[place]*[audit.TreeBlock]audit.Hash // of blocks
	nodes  map[place]audit.Hash                   // that audit_tree has
}

// place names a node of the tree of a chain; of a block, level is 0 and node the number of the block.
type place struct {
	audit.TopicPartition
	level int
	node  int64
}

// prove finds the paths of rows.
func (p *prover) prove(ctx context.Context, rows []*Row) error {
	p.leaves, p.nodes = map[place]*[audit.TreeBlock]audit.Hash{}, map[place]audit.Hash{}
	from, to := rows[0].Time(audit.ColTime), rows[0].Time(audit.ColTime)
	for _, r := range rows {
		if t := r.Time(audit.ColTime); t.Before(from) {
			from = t
		} else if t.After(to) {
			to = t
		}
		// The same walk as below, to learn what it needs.
		ask := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			for _, x := range indexes {
				p.want(r.Chain, x)
			}
			return make([]tlog.Hash, len(indexes)), nil
		})
		if _, err := audit.ProvePath(r.Seq-1, p.chains[r.Chain].rows, ask); err != nil {
			return err
		}
	}
	if err := p.read(ctx, from, to); err != nil {
		return err
	}
	for _, r := range rows {
		tree := p.chains[r.Chain]
		found := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for i, x := range indexes {
				level, n := tlog.SplitStoredHashIndex(x)
				out[i] = tlog.Hash(p.hash(r.Chain, level, n))
			}
			return out, nil
		})
		var err error
		if r.path, err = audit.ProvePath(r.Seq-1, tree.rows, found); err != nil {
			return err
		}
		if !audit.CheckPath(r.path, tree.root, audit.RowLeaf(r.hash), r.Seq-1, tree.rows) {
			return fmt.Errorf("row %d of %s cannot be proven: the log does not lead to what %s says. It was changed, or has lost rows since: see `batchyard audit verify`", r.Seq, r.Chain, p.name)
		}
	}
	return nil
}

// want notes which hashes a node is computed from.
func (p *prover) want(at audit.TopicPartition, index int64) {
	level, n := tlog.SplitStoredHashIndex(index)
	if level < audit.TreeStep {
		p.leaves[place{at, 0, n << level / audit.TreeBlock}] = nil
		return
	}
	kept := level - level%audit.TreeStep
	for i := range int64(1) << (level - kept) {
		p.nodes[place{at, kept, n<<(level-kept) + i}] = audit.Hash{}
	}
}

// hash computes a node.
func (p *prover) hash(at audit.TopicPartition, level int, n int64) audit.Hash {
	var e audit.Edge
	if level < audit.TreeStep {
		b := p.leaves[place{at, 0, n << level / audit.TreeBlock}]
		for i := range int64(1) << level {
			e.Append(b[(n<<level+i)%audit.TreeBlock], nil)
		}
		return e.Root()
	}
	kept := level - level%audit.TreeStep
	for i := range int64(1) << (level - kept) {
		e.Append(p.nodes[place{at, kept, n<<(level-kept) + i}], nil)
	}
	return e.Root()
}

const nodesSQL = `SELECT t.topic, t.partition, t.level, t.node, t.hash FROM audit_tree t
JOIN unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[]) AS u (topic, partition, level, node) USING (topic, partition, level, node)`

const leavesSQL = `SELECT a.src_topic, a.src_partition, a.chain_seq - 1, a.row_hash FROM audit_log a
JOIN unnest($1::text[], $2::int[], $3::bigint[]) AS u (topic, partition, block)
ON a.src_topic = u.topic AND a.src_partition = u.partition AND (a.chain_seq - 1) / 256 = u.block
WHERE a.time BETWEEN $4 AND $5 AND length(a.row_hash) = 32`

const keptLeavesSQL = `SELECT t.topic, t.partition, t.node, t.hash FROM audit_tree t
JOIN unnest($1::text[], $2::int[], $3::bigint[]) AS u (topic, partition, block) ON t.topic = u.topic AND t.partition = u.partition AND t.level = 0
AND t.node BETWEEN 256 * u.block AND 256 * u.block + 255 AND length(t.hash) = 32`

// margin is how far rows of the same block are apart in time: their writers' clocks and delays differ. If rows
// are missing then, all days are searched.
const margin = time.Hour

// read reads what was noted. Rows that are not there leave hashes of zeros, and then there is no proof.
func (p *prover) read(ctx context.Context, from, to time.Time) error {
	var topics []string
	var parts []int32
	var levels []int16
	var numbers []int64
	for k := range p.nodes {
		topics, parts, levels, numbers = append(topics, k.Topic), append(parts, k.Partition), append(levels, int16(k.level)), append(numbers, k.node)
	}
	rows, err := p.tx.Query(ctx, nodesSQL, topics, parts, levels, numbers)
	if err != nil {
		return fmt.Errorf("reading audit_tree: %w", err)
	}
	var k place
	var sum []byte
	if _, err := pgx.ForEachRow(rows, []any{&k.Topic, &k.Partition, &k.level, &k.node, &sum}, func() error {
		if len(sum) == len(audit.Hash{}) {
			p.nodes[k] = audit.Hash(sum)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("reading audit_tree: %w", err)
	}
	missing, err := p.readLeaves(ctx, keptLeavesSQL)
	if err == nil && missing {
		if missing, err = p.readLeaves(ctx, leavesSQL, from.Add(-margin), to.Add(margin)); err == nil && missing {
			_, err = p.readLeaves(ctx, leavesSQL, pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true})
		}
	}
	return err
}

// readLeaves reads the leaves of blocks that lack some, and reports whether any still does.
func (p *prover) readLeaves(ctx context.Context, sql string, more ...any) (missing bool, err error) {
	var topics []string
	var parts []int32
	var blocks []int64
	for k, b := range p.leaves {
		if b == nil {
			p.leaves[k] = &[audit.TreeBlock]audit.Hash{}
		}
		if p.lacks(k) {
			topics, parts, blocks = append(topics, k.Topic), append(parts, k.Partition), append(blocks, k.node)
		}
	}
	if len(topics) == 0 {
		return false, nil
	}
	rows, err := p.tx.Query(ctx, sql, append([]any{topics, parts, blocks}, more...)...)
	if err != nil {
		return false, fmt.Errorf("reading the rows of the same blocks: %w", err)
	}
	var at audit.TopicPartition
	var index int64
	var sum []byte
	if _, err := pgx.ForEachRow(rows, []any{&at.Topic, &at.Partition, &index, &sum}, func() error {
		b := p.leaves[place{at, 0, index / audit.TreeBlock}]
		if b == nil || index < 0 {
			return nil
		}
		if b[index%audit.TreeBlock] = audit.Hash(sum); sql == leavesSQL {
			b[index%audit.TreeBlock] = audit.RowLeaf(audit.Hash(sum))
		}
		return nil
	}); err != nil {
		return false, fmt.Errorf("reading the rows of the same blocks: %w", err)
	}
	for k := range p.leaves {
		missing = missing || p.lacks(k)
	}
	return missing, nil
}

// lacks reports whether a block lacks a leaf that the tree has.
func (p *prover) lacks(k place) bool {
	b := p.leaves[k]
	for i := range min(audit.TreeBlock, p.chains[k.TopicPartition].rows-k.node*audit.TreeBlock) {
		if b[i] == (audit.Hash{}) {
			return true
		}
	}
	return false
}
