// Package prove makes proofs that rows are in the audit log, for people without access to the database. Package
// audit specifies them and checks them. A proof checks itself, so nothing that is read here has to be
// trusted: if the database was changed, there is no proof.
package prove

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// Candidate is a checkpoint that a proof may lead to.
type Candidate struct {
	*audit.SignedCheckpoint
	Signed []byte // its note, with the signatures of witnesses if there are any
}

// Request is what to prove.
type Request struct {
	audit.ProofSubject
	// Candidates are checkpoints, the best first: the newest that was cosigned. The proof leads to the first
	// that has all rows.
	Candidates []Candidate
}

// ErrNoRows says that the log has no row of the task or job.
var ErrNoRows = errors.New("the audit log has no row of it")

// jobActions are the rows of a job that its proof has: what was asked for, how each task ended, which ends did not
// count, which tasks ran again, and the digests of answers. Rows with the digests of results come on top.
const jobActions = "('job.submitted', 'task.succeeded', 'task.failed', 'task.cancelled', 'task.expired', 'task.retried', 'attempt.succeeded', 'result.duplicate')"

// where returns the condition for the rows of a subject.
func (p *prover) where(s audit.ProofSubject) (sql string, args []any) {
	if s.Job != "" {
		topics, partitions, numbers := p.carrierColumns()
		return "chain_seq IS NOT NULL AND (job_id = $1 AND tenant = $2 AND action IN " + jobActions + " OR (src_topic, src_partition, chain_seq) IN (SELECT * FROM unnest($3::text[], $4::int[], $5::bigint[])))",
			[]any{s.Job, s.Tenant, topics, partitions, numbers}
	}
	return "task_id = $1 AND tenant = $2 AND chain_seq IS NOT NULL", []any{s.Task, s.Tenant}
}

// batch is the number of rows that are proven at a time: their answers may be large.
const batch = 1000

// Write writes a proof and returns the checkpoint that it leads to and the number of rows.
func Write(ctx context.Context, pool *pgxpool.Pool, r Request, w io.Writer) (c *audit.SignedCheckpoint, rows int, err error) {
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, 0, fmt.Errorf("beginning a transaction: %w", err)
	}
	defer pg.Rollback(ctx, tx)
	p := &prover{tx: tx}
	if r.Job != "" {
		if err := p.findCarriers(ctx, r.ProofSubject); err != nil {
			return nil, 0, err
		}
	}
	condition, args := p.where(r.ProofSubject)
	ends, count, err := lastRows(ctx, tx, condition, args)
	if err != nil {
		return nil, 0, err
	}
	best, err := p.choose(r.Candidates, ends)
	if err != nil {
		return nil, 0, err
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	err = e.Encode(audit.ProofHead{Proof: audit.ProofVersion, ProofSubject: r.ProofSubject, Rows: count, Body: string(best.Body), Index: best.Number - 1, Path: audit.EncodePath(best.Path), Note: string(best.Signed)})
	if err != nil {
		return nil, 0, fmt.Errorf("writing the proof: %w", err)
	}
	if _, err := tx.Exec(ctx, "DECLARE proven BINARY NO SCROLL CURSOR FOR SELECT "+audit.RowColumns+" FROM audit_log WHERE "+condition+" ORDER BY src_topic COLLATE \"C\", src_partition, chain_seq", args...); err != nil {
		return nil, 0, fmt.Errorf("reading the rows: %w", err)
	}
	for {
		some, err := fetch(ctx, tx)
		if err != nil || len(some) == 0 {
			return best.SignedCheckpoint, rows, err
		}
		if err := p.prove(ctx, some); err != nil {
			return nil, 0, err
		}
		if r.Job != "" {
			if err := p.addAnswers(ctx, r.Tenant, some); err != nil {
				return nil, 0, err
			}
		}
		for _, row := range some {
			line := row.line()
			if line.Results, err = p.carried(ctx, r.Tenant, row); err != nil {
				return nil, 0, err
			}
			if err := e.Encode(line); err != nil {
				return nil, 0, fmt.Errorf("writing the proof: %w", err)
			}
			rows++
		}
	}
}

// lastRows returns the number of the last row in each chain that meets a condition, and how many do.
func lastRows(ctx context.Context, tx pgx.Tx, condition string, args []any) (ends map[audit.TopicPartition]int64, count int, err error) {
	rows, err := tx.Query(ctx, "SELECT src_topic, src_partition, max(chain_seq), count(*) FROM audit_log WHERE "+condition+" GROUP BY 1, 2", args...)
	if err != nil {
		return nil, 0, fmt.Errorf("looking for the rows: %w", err)
	}
	ends = map[audit.TopicPartition]int64{}
	var at audit.TopicPartition
	var last int64
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&at.Topic, &at.Partition, &last, &n}, func() error {
		ends[at] = last
		count += n
		return nil
	}); err != nil {
		return nil, 0, fmt.Errorf("looking for the rows: %w", err)
	}
	if len(ends) == 0 {
		return nil, 0, ErrNoRows
	}
	return ends, count, nil
}

// choose takes the first checkpoint that has all rows.
func (p *prover) choose(candidates []Candidate, ends map[audit.TopicPartition]int64) (*Candidate, error) {
	for i := range candidates {
		c := &candidates[i]
		p.chains = map[audit.TopicPartition]size{}
		for _, e := range c.Chains {
			if root, err := hex.DecodeString(e.Root); err == nil && len(root) == len(audit.Hash{}) {
				p.chains[e.At()] = size{e.Rows, audit.Hash(root)}
			}
		}
		all := true
		for at, last := range ends {
			all = all && p.chains[at].rows >= last
		}
		if all {
			p.name = fmt.Sprintf("checkpoint %d of %s", c.Number, c.Origin)
			return c, nil
		}
	}
	if len(candidates) == 0 {
		return nil, errors.New("there is no checkpoint with a valid signature: name a file with --checkpoints, and its key with --public-key")
	}
	return nil, errors.New("no checkpoint has all rows yet: try again after audit.checkpoint_interval")
}

// fetch reads the next rows.
func fetch(ctx context.Context, tx pgx.Tx) (out []*Row, err error) {
	rows, err := tx.Query(ctx, fmt.Sprintf("FETCH %d FROM proven", batch), pgx.QueryExecModeDescribeExec, pgx.QueryResultFormats{pgx.BinaryFormatCode})
	if err != nil {
		return nil, fmt.Errorf("reading the rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		row, err := newRow(rows.RawValues())
		if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the rows: %w", err)
	}
	return out, nil
}
