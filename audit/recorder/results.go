package recorder

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

const resultWidth = 27 // number of columns in audit.ResultColumns

// insertResultsSQL skips generations of tasks that have a result.
const insertResultsSQL = `
INSERT INTO results (` + audit.ResultColumns + `)
SELECT * FROM unnest($1::` + resultRowType + `[])
ON CONFLICT (tenant, task_id, generation) DO NOTHING
RETURNING tenant, task_id, generation`

// copyResultsSQL fails if a generation of a task has a result.
const copyResultsSQL = `COPY results (` + audit.ResultColumns + `) FROM STDIN (FORMAT binary)`

// takenSQL reads results, with the requests that their ids belong to: a cancel does not know it.
const takenSQL = `
SELECT r.tenant, r.task_id, r.generation, r.state, r.attempt, r.finished_at, coalesce(r.fingerprint, t.fingerprint)
FROM unnest($1::text[], $2::text[], $3::integer[]) AS u (tenant, task_id, generation)
JOIN results r ON r.tenant = u.tenant AND r.task_id = u.task_id AND r.generation = u.generation
LEFT JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id`

const insertCallbacksSQL = `
INSERT INTO callbacks (callback_id, tenant, task_id, generation, url, host)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[])
ON CONFLICT (callback_id) DO NOTHING`

// firsts returns the first result of each run, in the order of the keys, and the others.
func firsts(all []offered) (first, rest []offered) {
	seen := make(map[task.Run]bool, len(all))
	for _, o := range all {
		if k := o.r.Run(); !seen[k] {
			seen[k] = true
			first = append(first, o)
		} else {
			rest = append(rest, o)
		}
	}
	slices.SortFunc(first, func(x, y offered) int {
		return cmp.Or(cmp.Compare(x.r.Tenant, y.r.Tenant), cmp.Compare(x.r.TaskID, y.r.TaskID), cmp.Compare(x.r.Generation, y.r.Generation))
	})
	return first, rest
}

// queueResults adds the insert of results to a batch. Once the batch was sent, taken has the runs whose
// result was inserted.
func (t *txn) queueResults(b *pgx.Batch, rs []offered) (taken map[task.Run]bool) {
	if len(rs) == 0 {
		return nil
	}
	t.rows.Reset(t.arrays, resultWidth)
	t.addResultRows(rs)
	taken = make(map[task.Run]bool, len(rs))
	b.Queue(insertResultsSQL, t.rows.EndArray(t.types.result)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var k task.Run
			if err := rows.Scan(&k.Tenant, &k.ID, &k.Generation); err != nil {
				return err
			}
			taken[k] = true
		}
		return rows.Err()
	})
	return taken
}

// copyResults inserts results of runs that have none.
func (t *txn) copyResults(ctx context.Context, rs []offered) error {
	t.rows.Reset(pg.Copy, resultWidth)
	t.addResultRows(rs)
	return copyByShortcut(ctx, t.tx, copyResultsSQL, len(rs), t.rows.EndCopy())
}

// addResultRows adds the rows of results, and keeps the digest of each.
func (t *txn) addResultRows(rs []offered) {
	t.offered = t.offered[:0]
	for _, o := range rs {
		addResultRow(&t.rows, o.r)
		t.scratch = t.rows.Fields(t.scratch)
		t.offered = append(t.offered, audit.DigestRow(audit.ResultRows, int64(o.r.Generation), t.scratch))
	}
}

// addResultRow adds a row with [audit.ResultColumns].
func addResultRow(rows *pg.Rows, r *task.Result) {
	var failed task.Error
	if r.Error != nil {
		failed = *r.Error
	}
	var callback task.Callback
	if r.Callback != nil {
		callback = *r.Callback
	}
	rows.Next()
	rows.Text(r.Tenant)
	rows.Text(r.TaskID)
	rows.Text(string(r.State))
	rows.Int4OrNull(int32(r.Status)) //nolint:gosec // clean.Result has checked it
	rows.JSONOrNull(r.Output)
	rows.TextOrNull(string(failed.Class))
	rows.TextOrNull(failed.Message)
	rows.Int4(int32(r.Attempt())) //nolint:gosec // clean.Result has checked it
	rows.JSONOrNull(asJSON(r.Attempts, len(r.Attempts)))
	rows.Int8(r.Usage.InputTokens)
	rows.Int8(r.Usage.OutputTokens)
	rows.TextOrNull(r.DeviceID)
	rows.TextOrNull(r.Model)
	rows.TextOrNull(r.RequestedModel)
	rows.TextOrNull(r.Endpoint)
	rows.TextOrNull(string(r.Priority))
	rows.TextOrNull(r.JobID)
	rows.TextOrNull(r.CustomID)
	rows.JSONOrNull(asJSON(r.Labels, len(r.Labels)))
	rows.TextOrNull(callback.URL)
	rows.TextOrNull(r.TraceID)
	rows.TimeOrNull(r.SubmittedAt)
	rows.TimeOrNull(r.AssignedAt)
	rows.TimeOrNull(r.StartedAt)
	rows.TimeOrNull(r.FinishedAt)
	rows.Int4(int32(r.Generation)) //nolint:gosec // clean.Result has checked it
	rows.BytesOrNull(r.Request().Bytes())
}

// asJSON encodes n attempts or labels; nil if there are none.
func asJSON(v any, n int) []byte {
	if n == 0 {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil // a time beyond the year 9999 in an attempt; the rest of the result is worth more
	}
	return b
}

// end distinguishes the terminal results of a run.
type end struct {
	state   string
	attempt int32
	at      time.Time
	request task.Fingerprint
}

func endOf(r *task.Result) end {
	return end{string(r.State), int32(r.Attempt()), r.FinishedAt, r.Request()}
}

// duplicates returns those of the results in rest, which were not taken, that differ from the one
// that was. The same result again means nothing: its writer repeated a request to Kafka, or its
// record was read again.
func (t *txn) duplicates(ctx context.Context, rest []offered, won []*task.Result) ([]offered, error) {
	ends := make(map[task.Run]end, len(rest)+len(won))
	for _, r := range won {
		ends[r.Run()] = endOf(r)
	}
	var unknown []task.Run
	for _, o := range rest {
		if k := o.r.Run(); ends[k].request.IsZero() {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 {
		if err := t.readEnds(ctx, unknown, ends); err != nil {
			return nil, fmt.Errorf("reading the results that were taken before: %w", err)
		}
	}
	var differ []offered
	for _, o := range rest {
		have, mine := ends[o.r.Run()], endOf(o.r)
		if t.mode == fast && have.request.Differs(mine.request) {
			return nil, errAnotherRequest
		}
		if have.state != mine.state || have.attempt != mine.attempt || !have.at.Equal(mine.at) {
			differ = append(differ, o)
		}
	}
	return differ, nil
}

// readEnds reads the results of runs into ends.
func (t *txn) readEnds(ctx context.Context, runs []task.Run, ends map[task.Run]end) error {
	var tenants, ids []string
	var generations []int
	for _, k := range runs {
		tenants, ids, generations = append(tenants, k.Tenant), append(ids, k.ID), append(generations, k.Generation)
	}
	rows, err := t.tx.Query(ctx, takenSQL, tenants, ids, generations)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k task.Run
		var e end
		var request []byte
		if err := rows.Scan(&k.Tenant, &k.ID, &k.Generation, &e.state, &e.attempt, &e.at, &request); err != nil {
			return err
		}
		copy(e.request[:], request)
		e.at = e.at.UTC()
		ends[k] = e
	}
	return rows.Err()
}

// duplicateEvent returns the event of a result that was not taken.
func duplicateEvent(r *task.Result, instance string, now time.Time) task.Event {
	e := task.Event{
		Time: clean.Micro(now), Action: task.ResultDuplicate, Outcome: task.OutcomeRefused, Tenant: r.Tenant,
		ActorType: task.ActorStage, ActorID: instance, ResourceType: "result", ResourceID: r.TaskID,
		TaskID: r.TaskID, JobID: r.JobID, DeviceID: r.DeviceID, Attempt: r.Attempt(), TraceID: r.TraceID, Model: r.Model, Generation: r.Generation,
		InputTokens: r.Usage.InputTokens, OutputTokens: r.Usage.OutputTokens, OutputSize: int64(len(r.Output)),
	}
	if r.Error != nil {
		e.ErrorClass = r.Error.Class
	}
	e.Detail, _ = json.Marshal(map[string]any{"state": r.State, "finished_at": r.FinishedAt}) // neither can fail
	return e
}

// digestCallbacks adds the digests of the callbacks of the results that were taken.
func (t *txn) digestCallbacks(taken []*task.Result) {
	for _, r := range taken {
		if r.Callback == nil {
			continue
		}
		var f pg.Fields
		f.Text(r.Run().CallbackID())
		f.Text(r.Tenant)
		f.Text(r.TaskID)
		f.Int4(int32(r.Generation)) //nolint:gosec // clean.Result has checked it
		f.Null()                    // job_id
		f.Null()                    // body
		f.Text(r.Callback.URL)
		f.Text(hostOf(r.Callback.URL))
		t.addDigest(audit.DigestRow(audit.CallbackRows, 0, f.B))
	}
}

// queueCallbacks adds the callbacks of the results that were taken to a batch, and notifies the
// stage that delivers them.
func queueCallbacks(b *pgx.Batch, taken []*task.Result) {
	var ids, tenants, tasks, urls, hosts []string
	var generations []int
	for _, r := range taken {
		if r.Callback != nil {
			ids, tenants = append(ids, r.Run().CallbackID()), append(tenants, r.Tenant)
			generations = append(generations, r.Generation)
			tasks, urls = append(tasks, r.TaskID), append(urls, r.Callback.URL)
			hosts = append(hosts, hostOf(r.Callback.URL))
		}
	}
	if len(ids) == 0 {
		return
	}
	b.Queue(insertCallbacksSQL, ids, tenants, tasks, generations, urls, hosts)
	b.Queue("SELECT pg_notify($1, '')", pg.CallbacksChannel)
}

// hostOf returns the host of a URL; deliveries are bounded per host.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "" // [clean.Result] has refused a result with such a URL
	}
	return strings.ToLower(u.Host)
}

// queueNotifications adds the notifications of finished tasks to a batch; Postgres delivers them
// when the transaction commits.
func queueNotifications(b *pgx.Batch, taken []*task.Result) {
	hashes := make([]pg.ShortHash, len(taken))
	for i, r := range taken {
		hashes[i] = pg.Shorten(r.Key().Hash())
	}
	for _, text := range pg.EncodeNotifications(hashes) {
		b.Queue("SELECT pg_notify($1, $2)", pg.ResultsChannel, text)
	}
}
