package prove

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
)

// carrier is the place of a row that has the digests of results.
type carrier struct {
	audit.TopicPartition
	seq int64
}

// run names a result of the job.
type run struct {
	task       string
	generation int32
}

// maxCarried bounds the results beside a row: its line must not be longer than a line of a proof may be.
const maxCarried = 128 << 20

// Only rows of the tenant: people who get the proof must not see those of others.
const carriersSQL = `SELECT src_topic, src_partition, chain_seq, row_digests FROM audit_log
WHERE chain_seq IS NOT NULL AND row_digests IS NOT NULL AND (tenant = $1 OR tenant = '' AND action = 'audit.rows_recorded')
AND ingested_at IN (SELECT recorded_at FROM results WHERE tenant = $1 AND job_id = $2)`

// findCarriers finds the rows with the digests of the job's results. Of a result whose row in the log is gone, or
// about another tenant, the proof has less.
func (p *prover) findCarriers(ctx context.Context, s audit.ProofSubject) error {
	digests := map[audit.RowDigest]run{}
	sizes := map[run]int{}
	if err := p.readResults(ctx, "SELECT "+audit.ResultColumns+" FROM results WHERE tenant = $1 AND job_id = $2", []any{s.Tenant, s.Job}, func(r run, fields []byte) {
		digests[audit.DigestRow(audit.ResultRows, int64(r.generation), fields)] = r
		sizes[r] = len(fields)
	}); err != nil {
		return err
	}
	p.carriers, p.whole = map[carrier][]run{}, map[string]bool{}
	rows, err := p.tx.Query(ctx, carriersSQL, s.Tenant, s.Job)
	if err != nil {
		return fmt.Errorf("looking for the digests of results: %w", err)
	}
	var at carrier
	var all []byte
	if _, err := pgx.ForEachRow(rows, []any{&at.Topic, &at.Partition, &at.seq, &all}, func() error {
		size := 0
		return audit.ReadDigests(all, func(d *audit.RowDigest) {
			if r, ok := digests[*d]; ok && size+sizes[r] <= maxCarried {
				delete(digests, *d)
				size += sizes[r]
				p.carriers[at], p.whole[r.task] = append(p.carriers[at], r), true
			}
		})
	}); err != nil {
		return fmt.Errorf("looking for the digests of results: %w", err)
	}
	return nil
}

// carrierColumns returns the places of carriers by column.
func (p *prover) carrierColumns() (topics []string, partitions []int32, numbers []int64) {
	for c := range p.carriers {
		topics, partitions, numbers = append(topics, c.Topic), append(partitions, c.Partition), append(numbers, c.seq)
	}
	return topics, partitions, numbers
}

// carried returns the results whose digests a row has. They are read when the row is written: together they
// may be large.
func (p *prover) carried(ctx context.Context, tenant string, r *Row) (out [][]byte, err error) {
	runs := p.carriers[carrier{r.Chain, r.Seq}]
	if len(runs) == 0 {
		return nil, nil
	}
	ids, generations := make([]string, len(runs)), make([]int32, len(runs))
	place := make(map[run]int, len(runs))
	for i, r := range runs {
		ids[i], generations[i], place[r] = r.task, r.generation, i
	}
	out = make([][]byte, len(runs))
	err = p.readResults(ctx, "SELECT "+audit.ResultColumns+" FROM results WHERE tenant = $1 AND (task_id, generation) IN (SELECT * FROM unnest($2::text[], $3::int[]))", []any{tenant, ids, generations}, func(r run, fields []byte) {
		if i, ok := place[r]; ok {
			out[i] = fields
		}
	})
	return out, err
}

// readResults calls fn with the columns of results in binary.
func (p *prover) readResults(ctx context.Context, sql string, args []any, fn func(run, []byte)) error {
	rows, err := p.tx.Query(ctx, sql, append([]any{pgx.QueryExecModeDescribeExec, pgx.QueryResultFormats{pgx.BinaryFormatCode}}, args...)...)
	if err != nil {
		return fmt.Errorf("reading the results: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		values := rows.RawValues()
		var fields []byte
		for _, v := range values {
			if v == nil {
				fields = append(fields, 0xff, 0xff, 0xff, 0xff)
				continue
			}
			fields = append(binary.BigEndian.AppendUint32(fields, uint32(len(v))), v...) //nolint:gosec // Postgres has no longer values
		}
		const id, generation = 1, 25
		fn(run{string(values[id]), int32(binary.BigEndian.Uint32(values[generation]))}, fields) //nolint:gosec // two's complement
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading the results: %w", err)
	}
	return nil
}
