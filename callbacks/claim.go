package callbacks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// callback is a claimed row and the result to deliver.
type callback struct {
	id, tenant, taskID, url, host string
	attempts                      int // including this one
	leaseEnd                      time.Time
	found                         bool // the result exists
	truncated                     bool // its output is too large for a callback
	data                          Data
	silent                        bool   // its host had timed out when the slot was taken
	job                           string // of a job's callback; else empty
	ready                         []byte // the body of a job's callback
}

// candidates is how many due rows a claim considers: enough to find other hosts behind one that has
// many.
const candidates = "1000"

// claimSQL claims due rows and returns them with their results.
//
//	$1 the holder   $2 the lease in milliseconds   $3 how many rows   $4 most bytes of output
//	$5, $6 hosts and how many rows of each   $7 how many of any other host
//	$8, $9 tenants and how many rows of each   $10 how many of any other tenant
//
// Rows of hosts and tenants that may have none are skipped, as are rows that another process has locked. The
// row's next time becomes the end of the lease, so rows of a process that died come due by themselves.
//
// LATERAL makes Postgres look the rows up one by one, by their keys, whatever the planner knows.
// After a burst, before the tables are analyzed, it would otherwise choose a nested loop over both.
const claimSQL = `
WITH hosts AS (SELECT * FROM unnest($5::text[], $6::int[]) AS h (host, room)),
tenants AS (SELECT * FROM unnest($8::text[], $9::int[]) AS t (tenant, room)),
due AS (
	SELECT callback_id, tenant, host, next_at FROM callbacks
	WHERE state = 'DUE' AND next_at <= now() AND host <> ALL (SELECT host FROM hosts WHERE room <= 0) AND tenant <> ALL (SELECT tenant FROM tenants WHERE room <= 0)
	ORDER BY next_at LIMIT ` + candidates + `),
by_host AS (
	SELECT due.*, row_number() OVER (PARTITION BY due.host ORDER BY due.next_at) AS place, coalesce(hosts.room, $7) AS room
	FROM due LEFT JOIN hosts ON hosts.host = due.host),
by_tenant AS (
	SELECT h.callback_id, h.next_at, row_number() OVER (PARTITION BY h.tenant ORDER BY h.next_at) AS place, coalesce(tenants.room, $10) AS room
	FROM by_host h LEFT JOIN tenants ON tenants.tenant = h.tenant WHERE h.place <= h.room),
picked AS MATERIALIZED (
	SELECT c.callback_id, c.tenant, c.task_id, c.generation FROM (SELECT callback_id FROM by_tenant WHERE place <= room ORDER BY next_at) r
	CROSS JOIN LATERAL (
		SELECT callback_id, tenant, task_id, generation FROM callbacks
		WHERE callback_id = r.callback_id AND state = 'DUE' AND next_at <= now() FOR UPDATE SKIP LOCKED) c
	LIMIT $3)
UPDATE callbacks c SET holder = $1, attempts = c.attempts + 1, next_at = now() + $2 * interval '1 millisecond'
FROM picked p LEFT JOIN LATERAL (
	SELECT * FROM results WHERE tenant = p.tenant AND task_id = p.task_id AND generation = p.generation OFFSET 0) r ON true
WHERE c.callback_id = p.callback_id
RETURNING c.callback_id, c.tenant, coalesce(c.task_id, ''), c.url, c.host, c.attempts, c.generation, r.task_id IS NOT NULL OR c.job_id IS NOT NULL,
	coalesce(c.job_id, ''), c.body::text,
	coalesce(octet_length(r.output::text) > $4, false), CASE WHEN octet_length(r.output::text) <= $4 THEN r.output::text END,
	coalesce(r.state, ''), coalesce(r.model, ''), coalesce(r.requested_model, ''), coalesce(r.endpoint, ''), coalesce(r.priority, ''),
	coalesce(r.job_id, ''), coalesce(r.custom_id, ''), coalesce(r.trace_id, ''), coalesce(r.device_id, ''), coalesce(r.attempt, 0),
	r.attempts::text, coalesce(r.status, 0), coalesce(r.error_class, ''), coalesce(r.error_message, ''),
	coalesce(r.input_tokens, 0), coalesce(r.output_tokens, 0), r.labels::text, r.submitted_at, r.assigned_at, r.started_at, r.finished_at`

// table is the table of callbacks in Postgres.
type table struct {
	pool   *pgxpool.Pool
	holder string
	cfg    Config
}

// claim claims as many due callbacks as there is room for.
func (t *table) claim(ctx context.Context, r room) ([]*callback, error) {
	hosts, hostRooms := columns(r.hosts)
	tenants, tenantRooms := columns(r.tenants)
	end := time.Now().Add(t.cfg.lease())
	rows, err := t.pool.Query(ctx, claimSQL, t.holder, t.cfg.lease().Milliseconds(), r.free, t.cfg.MaxOutput,
		hosts, hostRooms, t.cfg.PerHost, tenants, tenantRooms, t.cfg.PerTenant)
	if err != nil {
		return nil, fmt.Errorf("claiming callbacks: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*callback, error) {
		c := &callback{leaseEnd: end}
		return c, c.scan(r)
	})
	if err != nil {
		return nil, fmt.Errorf("claiming callbacks: %w", err)
	}
	return out, nil
}

func columns(rooms map[string]int) (names []string, n []int32) {
	names, n = make([]string, 0, len(rooms)), make([]int32, 0, len(rooms))
	for name, room := range rooms {
		names, n = append(names, name), append(n, int32(room)) //nolint:gosec // at most 10,000
	}
	return names, n
}

func (c *callback) scan(r pgx.CollectableRow) error {
	d := &c.data
	var output, attempts, labels []byte
	var class, message string
	var usage task.Usage
	err := r.Scan(&c.id, &c.tenant, &c.taskID, &c.url, &c.host, &c.attempts, &d.Generation, &c.found, &c.job, &c.ready, &c.truncated, &output,
		&d.State, &d.Model, &d.Requested, &d.Endpoint, &d.Priority, &d.Job, &d.CustomID, &d.TraceID, &d.Device, &d.Attempt,
		&attempts, &d.Status, &class, &message, &usage.InputTokens, &usage.OutputTokens, &labels,
		&d.SubmittedAt, &d.AssignedAt, &d.StartedAt, &d.FinishedAt)
	if err != nil {
		return err
	}
	d.ID, d.Tenant, d.Output, d.Attempts = c.taskID, c.tenant, output, attempts
	if class != "" || message != "" {
		d.Error = &task.Error{Class: task.ErrorClass(class), Message: message}
	}
	if usage != (task.Usage{}) {
		d.Usage = &usage
	}
	for _, at := range []**time.Time{&d.SubmittedAt, &d.AssignedAt, &d.StartedAt, &d.FinishedAt} {
		if *at != nil {
			utc := (*at).UTC()
			*at = &utc
		}
	}
	if labels != nil {
		if err := json.Unmarshal(labels, &d.Labels); err != nil {
			return fmt.Errorf("reading the labels of task %s/%s: %w", c.tenant, c.taskID, err)
		}
	}
	return nil
}

// untilNext returns the time until the next callback is due for which there is room; ok is false when there is
// none.
func (t *table) untilNext(ctx context.Context, r room) (d time.Duration, ok bool, err error) {
	var ms float64
	err = t.pool.QueryRow(ctx, `SELECT (extract(epoch FROM next_at - now()) * 1000)::float8 FROM callbacks
		WHERE state = 'DUE' AND host <> ALL ($1::text[]) AND tenant <> ALL ($2::text[]) ORDER BY next_at LIMIT 1`, full(r.hosts), full(r.tenants)).Scan(&ms)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking for the next callback: %w", err)
	}
	return time.Duration(ms * float64(time.Millisecond)), true, nil
}

// countLimit bounds the work of counting due callbacks.
const countLimit = 100_000

// due returns how many callbacks are due, up to countLimit.
func (t *table) due(ctx context.Context) (n int, err error) {
	err = t.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM callbacks WHERE state = 'DUE' AND next_at <= now() LIMIT $1) d`, countLimit).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting callbacks: %w", err)
	}
	return n, nil
}

// digest returns the digest of the row as saveOutcome leaves it.
func (c *callback) digest(o outcome) audit.RowDigest {
	var f pg.Fields
	f.Text(c.id)
	f.Text(c.tenant)
	f.Text(o.state)
	f.Int4(int32(c.attempts))     //nolint:gosec // it comes from an integer
	f.Int4OrNull(int32(o.status)) //nolint:gosec // a status of HTTP
	f.TextOrNull(o.problem)
	if o.state == stateDelivered {
		f.Time(o.at)
	} else {
		f.Null()
	}
	return audit.DigestRow(audit.DeliveryRows, int64(c.attempts), f.B)
}

// saveOutcome records the outcome of a delivery, unless another process has claimed the row since.
func (t *table) saveOutcome(ctx context.Context, c *callback, o outcome) error {
	var status *int
	if o.status != 0 {
		status = &o.status
	}
	_, err := t.pool.Exec(ctx, `UPDATE callbacks SET state = $3, last_status = $4, last_error = nullif($5, ''),
			delivered_at = CASE WHEN $3 = 'DELIVERED' THEN $8::timestamptz END,
			next_at = CASE WHEN $3 = 'DUE' THEN now() + $6 * interval '1 millisecond' ELSE next_at END
		WHERE callback_id = $1 AND holder = $2 AND attempts = $7 AND state = 'DUE'`,
		c.id, t.holder, o.state, status, o.problem, o.pause.Milliseconds(), c.attempts, o.at)
	if err != nil {
		return fmt.Errorf("saving the outcome of callback %s: %w", c.id, err)
	}
	return nil
}
