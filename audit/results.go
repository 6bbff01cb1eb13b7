package audit

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// CallbackID is the id of the callback that tells of a task's result: the same
// whenever and by whomever it is made.
func CallbackID(k task.Key) string {
	h := k.Hash()
	return "evt_" + hex.EncodeToString(h[:])
}

// resultFields are the columns of results in the order of resultRowType.
const resultFields = `tenant, task_id, state, status, output, error_class, error_message, attempt, attempts, input_tokens, output_tokens,
	device_id, model, requested_model, endpoint, priority, job_id, custom_id, labels, callback_url, trace_id,
	submitted_at, assigned_at, started_at, finished_at`

const resultWidth = 25 // of them

// insertResultsSQL passes over results that are there.
const insertResultsSQL = `
INSERT INTO results (` + resultFields + `)
SELECT * FROM unnest($1::` + resultRowType + `[])
ON CONFLICT (tenant, task_id) DO NOTHING
RETURNING tenant, task_id`

// copyResultsSQL fails when one of them is there.
const copyResultsSQL = `COPY results (` + resultFields + `) FROM STDIN (FORMAT binary)`

const takenSQL = `
SELECT r.tenant, r.task_id, r.state, r.attempt, r.finished_at
FROM unnest($1::text[], $2::text[]) AS u (tenant, task_id) JOIN results r ON r.tenant = u.tenant AND r.task_id = u.task_id`

const insertCallbacksSQL = `
INSERT INTO callbacks (callback_id, tenant, task_id, url, host)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT (callback_id) DO NOTHING`

// offered is a result as a chunk holds it.
type offered struct {
	entry *entry
	r     *task.Result
}

// firsts keeps the first result of each task, in the order of the keys, and
// returns the others apart.
func firsts(all []offered) (first, rest []offered) {
	seen := make(map[task.Key]bool, len(all))
	for _, o := range all {
		if k := o.r.Key(); !seen[k] {
			seen[k] = true
			first = append(first, o)
		} else {
			rest = append(rest, o)
		}
	}
	slices.SortFunc(first, func(x, y offered) int {
		return cmp.Or(cmp.Compare(x.r.Tenant, y.r.Tenant), cmp.Compare(x.r.TaskID, y.r.TaskID))
	})
	return first, rest
}

// queueResults adds the insert of results to a batch. Those that were new are in
// taken when the batch has been sent.
func queueResults(b *pgx.Batch, rs []offered, a *rowBuffer, element uint32, taken map[task.Key]*task.Result) {
	if len(rs) == 0 {
		return
	}
	a.array(resultWidth)
	byKey := make(map[task.Key]*task.Result, len(rs))
	for _, o := range rs {
		byKey[o.r.Key()] = o.r
		a.result(o.r)
	}
	b.Queue(insertResultsSQL, a.end(element)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var k task.Key
			if err := rows.Scan(&k.Tenant, &k.ID); err != nil {
				return err
			}
			taken[k] = byKey[k]
		}
		return rows.Err()
	})
}

// copyResults takes results none of which was taken before.
func copyResults(ctx context.Context, tx pgx.Tx, rs []offered, a *rowBuffer) error {
	a.copy(resultWidth)
	for _, o := range rs {
		a.result(o.r)
	}
	return copyIn(ctx, tx, copyResultsSQL, len(rs), a.fields.endCopy())
}

// result adds a row of results.
func (a *rowBuffer) result(r *task.Result) {
	var failed task.Error
	if r.Error != nil {
		failed = *r.Error
	}
	var callback task.Callback
	if r.Callback != nil {
		callback = *r.Callback
	}
	a.begin()
	a.text(r.Tenant)
	a.text(r.TaskID)
	a.text(string(r.State))
	a.int4If(int32(r.Status)) //nolint:gosec // cleanResult has checked it
	a.jsonOr(r.Output)
	a.textOr(string(failed.Class))
	a.textOr(failed.Message)
	a.int4(int32(r.Attempt())) //nolint:gosec // cleanResult has checked it
	a.jsonOr(asJSON(r.Attempts, len(r.Attempts)))
	a.int8(r.Usage.InputTokens)
	a.int8(r.Usage.OutputTokens)
	a.textOr(r.Device)
	a.textOr(r.Model)
	a.textOr(r.Requested)
	a.textOr(r.Endpoint)
	a.textOr(string(r.Priority))
	a.textOr(r.Job)
	a.textOr(r.CustomID)
	a.jsonOr(asJSON(r.Labels, len(r.Labels)))
	a.textOr(callback.URL)
	a.textOr(r.TraceID)
	a.timeOr(r.SubmittedAt)
	a.timeOr(r.AssignedAt)
	a.timeOr(r.StartedAt)
	a.timeOr(r.FinishedAt)
}

// asJSON encodes attempts and labels; nothing for none.
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

// end is what tells one terminal result from another.
type end struct {
	state   string
	attempt int32
	at      time.Time
}

func endOf(r *task.Result) end { return end{string(r.State), int32(r.Attempt()), r.FinishedAt} }

// duplicates returns those of the losing results that differ from the one that
// was taken. The same result once more is nothing that happened: its writer
// repeated a request to Kafka, or its record was read again.
func duplicates(ctx context.Context, tx pgx.Tx, losers []offered, won []*task.Result) ([]offered, error) {
	ends := make(map[task.Key]end, len(losers)+len(won))
	for _, r := range won {
		ends[r.Key()] = endOf(r)
	}
	var tenants, ids []string
	for _, o := range losers {
		k := o.r.Key()
		if _, ok := ends[k]; !ok {
			tenants, ids = append(tenants, k.Tenant), append(ids, k.ID)
		}
	}
	if len(ids) > 0 {
		rows, err := tx.Query(ctx, takenSQL, tenants, ids)
		if err != nil {
			return nil, fmt.Errorf("reading the results that were taken before: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var k task.Key
			var e end
			if err := rows.Scan(&k.Tenant, &k.ID, &e.state, &e.attempt, &e.at); err != nil {
				return nil, fmt.Errorf("reading the results that were taken before: %w", err)
			}
			e.at = e.at.UTC()
			ends[k] = e
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("reading the results that were taken before: %w", err)
		}
	}
	var differ []offered
	for _, o := range losers {
		if have, mine := ends[o.r.Key()], endOf(o.r); have.state != mine.state || have.attempt != mine.attempt || !have.at.Equal(mine.at) {
			differ = append(differ, o)
		}
	}
	return differ, nil
}

// duplicateEvent is the audit row of a result that was not taken.
func duplicateEvent(r *task.Result, actor string, now time.Time) task.Event {
	e := task.Event{
		Time: micro(now), Action: task.ResultDuplicate, Outcome: task.OutcomeRefused, Tenant: r.Tenant,
		ActorType: task.ActorStage, ActorID: actor, ResourceType: "result", ResourceID: r.TaskID,
		TaskID: r.TaskID, Job: r.Job, Device: r.Device, Attempt: r.Attempt(), TraceID: r.TraceID, Model: r.Model,
		TokensIn: r.Usage.InputTokens, TokensOut: r.Usage.OutputTokens, OutputSize: int64(len(r.Output)),
	}
	if r.Error != nil {
		e.ErrorClass = r.Error.Class
	}
	e.Detail, _ = json.Marshal(map[string]any{"state": r.State, "finished_at": r.FinishedAt}) // neither can be refused
	return e
}

// queueCallbacks adds the callbacks of the results that were taken and tells
// whoever delivers them.
func queueCallbacks(b *pgx.Batch, taken []*task.Result) {
	var ids, tenants, tasks, urls, hosts []string
	for _, r := range taken {
		if r.Callback != nil {
			ids, tenants = append(ids, CallbackID(r.Key())), append(tenants, r.Tenant)
			tasks, urls = append(tasks, r.TaskID), append(urls, r.Callback.URL)
			hosts = append(hosts, hostOf(r.Callback.URL))
		}
	}
	if len(ids) == 0 {
		return
	}
	b.Queue(insertCallbacksSQL, ids, tenants, tasks, urls, hosts)
	b.Queue("SELECT pg_notify($1, '')", CallbacksChannel)
}

// hostOf is whom a callback would burden: deliveries are bounded for each.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "" // a result with such a URL is refused before
	}
	return strings.ToLower(u.Host)
}
