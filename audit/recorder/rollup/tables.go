package rollup

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The statements add the counts of a chunk to the tables, in the order of the keys, so that two
// recorders that ever write to the same shard wait for each other without a deadlock.
//
// Sums of times saturate: a sender may claim any age for a task, and a chunk with a sum that
// overflows would be refused indefinitely.
const (
	addTimes = `us = r.us + least(excluded.us, 9223372036854775807 - r.us)`

	hourColumns = `date '1970-01-01' + h / 24, h % 24, $1::int`

	usageSQL = `
INSERT INTO rollup_usage AS r (day, hour, shard, tenant, model, endpoint, state, tasks, attempts, input_tokens, output_tokens)
SELECT ` + hourColumns + `, tenant, model, endpoint, state, tasks, attempts, input_tokens, output_tokens
FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
	AS u (h, tenant, model, endpoint, state, tasks, attempts, input_tokens, output_tokens) ORDER BY h, tenant, model, endpoint, state
ON CONFLICT (day, hour, shard, tenant, model, endpoint, state) DO UPDATE SET tasks = r.tasks + excluded.tasks,
	attempts = r.attempts + excluded.attempts, input_tokens = r.input_tokens + excluded.input_tokens, output_tokens = r.output_tokens + excluded.output_tokens`

	latencySQL = `
INSERT INTO rollup_latency AS r (day, hour, shard, stage, model, bucket, n, us)
SELECT ` + hourColumns + `, stage, model, bucket, n, us
FROM unnest($2::int[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[]) AS u (h, stage, model, bucket, n, us)
ORDER BY h, stage, model, bucket
ON CONFLICT (day, hour, shard, stage, model, bucket) DO UPDATE SET n = r.n + excluded.n, ` + addTimes

	attemptsSQL = `
INSERT INTO rollup_attempts AS r (day, hour, shard, device_id, model, action, cause, n, requests, us)
SELECT ` + hourColumns + `, device_id, model, action, cause, n, requests, us
FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[])
	AS u (h, device_id, model, action, cause, n, requests, us) ORDER BY h, device_id, model, action, cause
ON CONFLICT (day, hour, shard, device_id, model, action, cause) DO UPDATE SET n = r.n + excluded.n, requests = r.requests + excluded.requests, ` + addTimes

	batchesSQL = `
INSERT INTO rollup_batches AS r (day, hour, shard, model, reason, size, tasks, bytes)
SELECT ` + hourColumns + `, model, reason, size, tasks, bytes
FROM unnest($2::int[], $3::text[], $4::text[], $5::int[], $6::bigint[], $7::bigint[]) AS u (h, model, reason, size, tasks, bytes)
ORDER BY h, model, reason, size
ON CONFLICT (day, hour, shard, model, reason, size) DO UPDATE SET tasks = r.tasks + excluded.tasks, bytes = r.bytes + excluded.bytes`

	submissionsSQL = `
INSERT INTO rollup_submissions AS r (day, hour, shard, tenant, actor_id, source, user_agent, tasks, input_bytes, first_at, last_at)
SELECT date '1970-01-01' + d, -1, $1::int, tenant, actor_id, source, agent, tasks, bytes, first, last
FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::timestamptz[], $10::timestamptz[])
	AS u (d, tenant, actor_id, source, agent, tasks, bytes, first, last) ORDER BY d, tenant, actor_id, source, agent
ON CONFLICT (day, hour, shard, tenant, actor_id, source, user_agent) DO UPDATE SET tasks = r.tasks + excluded.tasks,
	input_bytes = r.input_bytes + excluded.input_bytes, first_at = least(r.first_at, excluded.first_at), last_at = greatest(r.last_at, excluded.last_at)`
)

// Queue adds the counts to a batch, one statement for each table that gets some. Use the shard of a
// partition that the process owns: then no other process writes to its rows at the same time.
func (r *Counts) Queue(b *pgx.Batch, shard int32) {
	r.queueUsage(b, shard)
	r.queueLatency(b, shard)
	r.queueAttempts(b, shard)
	r.queueBatches(b, shard)
	r.queueSubmissions(b, shard)
}

func (r *Counts) queueUsage(b *pgx.Batch, shard int32) {
	n := len(r.usage.keys)
	if n == 0 {
		return
	}
	hours, texts, ints := make([]int32, n), columns[string](4, n), columns[int64](4, n)
	for i, k := range r.usage.keys {
		v := &r.usage.vals[i]
		hours[i], texts[0][i], texts[1][i], texts[2][i], texts[3][i] = k.hour, k.tenant, k.model, k.endpoint, k.state
		ints[0][i], ints[1][i], ints[2][i], ints[3][i] = v.tasks, v.attempts, v.in, v.out
	}
	b.Queue(usageSQL, shard, hours, texts[0], texts[1], texts[2], texts[3], ints[0], ints[1], ints[2], ints[3])
}

func (r *Counts) queueLatency(b *pgx.Batch, shard int32) {
	n := len(r.latency.keys)
	if n == 0 {
		return
	}
	hours, buckets, texts, ints := make([]int32, n), make([]int16, n), columns[string](2, n), columns[int64](2, n)
	for i, k := range r.latency.keys {
		hours[i], buckets[i], texts[0][i], texts[1][i] = k.hour, k.bucket, k.stage, k.model
		ints[0][i], ints[1][i] = r.latency.vals[i].n, r.latency.vals[i].us
	}
	b.Queue(latencySQL, shard, hours, texts[0], texts[1], buckets, ints[0], ints[1])
}

func (r *Counts) queueAttempts(b *pgx.Batch, shard int32) {
	n := len(r.attempts.keys)
	if n == 0 {
		return
	}
	hours, texts, ints := make([]int32, n), columns[string](4, n), columns[int64](3, n)
	for i, k := range r.attempts.keys {
		v := &r.attempts.vals[i]
		hours[i], texts[0][i], texts[1][i], texts[2][i], texts[3][i] = k.hour, k.device, k.model, k.action, k.cause
		ints[0][i], ints[1][i], ints[2][i] = v.n, v.requests, v.us
	}
	b.Queue(attemptsSQL, shard, hours, texts[0], texts[1], texts[2], texts[3], ints[0], ints[1], ints[2])
}

func (r *Counts) queueBatches(b *pgx.Batch, shard int32) {
	n := len(r.batches.keys)
	if n == 0 {
		return
	}
	hours, sizes, texts, ints := make([]int32, n), make([]int32, n), columns[string](2, n), columns[int64](2, n)
	for i, k := range r.batches.keys {
		hours[i], sizes[i], texts[0][i], texts[1][i] = k.hour, k.size, k.model, k.reason
		ints[0][i], ints[1][i] = r.batches.vals[i].tasks, r.batches.vals[i].bytes
	}
	b.Queue(batchesSQL, shard, hours, texts[0], texts[1], sizes, ints[0], ints[1])
}

func (r *Counts) queueSubmissions(b *pgx.Batch, shard int32) {
	n := len(r.submissions.keys)
	if n == 0 {
		return
	}
	days, texts, ints, times := make([]int32, n), columns[string](4, n), columns[int64](2, n), columns[time.Time](2, n)
	for i, k := range r.submissions.keys {
		v := &r.submissions.vals[i]
		days[i], texts[0][i], texts[1][i], texts[2][i], texts[3][i] = k.day, k.tenant, k.actor, k.source, k.agent
		ints[0][i], ints[1][i], times[0][i], times[1][i] = v.tasks, v.bytes, v.first, v.last
	}
	b.Queue(submissionsSQL, shard, days, texts[0], texts[1], texts[2], texts[3], ints[0], ints[1], times[0], times[1])
}

// columns returns n arrays for a statement.
func columns[T any](n, rows int) [][]T {
	out := make([][]T, n)
	for i := range out {
		out[i] = make([]T, rows)
	}
	return out
}

// keptLonger is how many times longer than the rows their rollups are kept.
const keptLonger = 4

// Compact merges shards and, later, hours that are no longer needed separately, and drops rollups
// that are too old. retention is that of the audit rows. It may be repeated at any time.
func Compact(ctx context.Context, pool *pgxpool.Pool, retention time.Duration) error {
	forget := time.Now().Add(-keptLonger * min(retention, 50*365*24*time.Hour)).UTC()
	if _, err := pool.Exec(ctx, "SELECT batchyard_compact_rollups($1::date)", forget.Format(time.DateOnly)); err != nil {
		return fmt.Errorf("compacting rollups: %w", err)
	}
	return nil
}
