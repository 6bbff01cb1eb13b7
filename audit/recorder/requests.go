package recorder

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/batchyard/batchyard/audit/recorder/states"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

// An id belongs to one request, and only its result may be recorded. Routers refuse other requests under the
// same id. But if claims are lost before the first request is recorded, two may run, and either result may come
// first. Here the id belongs to the request whose event or result is recorded first; the result of the other
// becomes a dead letter.
//
// This costs nothing as long as all is well: mode fast only compares. What it compares with may be in the chunk
// (states.Set.Foreign), in tasks (a constraint fails the upsert) or in results (txn.duplicates). If something
// differs, the transaction is rolled back, and the chunk is written in mode safe, which asks Postgres first
// which results are foreign.

// errAnotherRequest says that a result may answer another request than the one its id belongs to.
var errAnotherRequest = fmt.Errorf("%w: a result answers another request than the one its id belongs to", errShortcutClosed)

// asAnotherRequest returns errAnotherRequest if that is what Postgres says, so that it is not taken for content
// that Postgres refuses.
func asAnotherRequest(err error) error {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.ConstraintName == states.RequestConstraint {
		return errAnotherRequest
	}
	return err
}

// foreignError names the results of a chunk that answer another request.
type foreignError struct {
	units  []unit
	causes []error // parallel to units
}

func (e *foreignError) Error() string { return e.causes[0].Error() }

const boundSQL = `
SELECT t.tenant, t.task_id, t.fingerprint
FROM unnest($1::text[], $2::text[]) AS u (tenant, task_id)
JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id
WHERE t.fingerprint IS NOT NULL`

// bind finds out to which request the id of each result of a chunk belongs: to that in tasks, else to that of the
// first event of the chunk that binds it, else to that of its first result. It returns a *foreignError if there are
// results of others.
func (t *txn) bind(ctx context.Context, us []unit) error {
	results := offers(us)
	if len(results) == 0 {
		return nil
	}
	bound, err := t.readBound(ctx, results)
	if err != nil {
		return fmt.Errorf("looking up the requests that %d results answer: %w", len(results), err)
	}
	for _, u := range us {
		if u.index == resultIndex {
			continue
		}
		e := &u.entry.events[u.index].event
		if f, has := bound[e.Key()]; has && f.IsZero() {
			copy(f[:], states.BoundBy(e))
			bound[e.Key()] = f
		}
	}
	var foreign foreignError
	for _, u := range us {
		if u.index != resultIndex {
			continue
		}
		r := u.entry.result
		switch f, mine := bound[r.Key()], r.Request(); {
		case f.IsZero():
			bound[r.Key()] = mine
		case f.Differs(mine):
			foreign.units = append(foreign.units, u)
			foreign.causes = append(foreign.causes, fmt.Errorf("the result of task %q answers the request %s, but the id belongs to %s: submit the request under another id", r.TaskID, mine, f))
		}
	}
	if len(foreign.units) > 0 {
		return &foreign
	}
	t.bound = bound
	return nil
}

// readBound returns what tasks says about the ids of results; the zero value if nothing.
func (t *txn) readBound(ctx context.Context, results []offered) (map[task.Key]task.Fingerprint, error) {
	bound := make(map[task.Key]task.Fingerprint, len(results))
	var tenants, ids []string
	for _, o := range results {
		k := o.r.Key()
		if _, has := bound[k]; !has {
			bound[k] = task.Fingerprint{}
			tenants, ids = append(tenants, k.Tenant), append(ids, k.ID)
		}
	}
	rows, err := t.tx.Query(ctx, boundSQL, tenants, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var k task.Key
		var b []byte
		if err := rows.Scan(&k.Tenant, &k.ID, &b); err != nil {
			return nil, err
		}
		var f task.Fingerprint
		copy(f[:], b)
		bound[k] = f
	}
	return bound, rows.Err()
}

// setForeignAside makes dead letters of results that answer another request.
func (w *writer) setForeignAside(e *foreignError) {
	w.metrics.Chunks.WithLabelValues("repeated").Inc()
	for i, u := range e.units {
		u.setAside(records.ReasonIDReused, e.causes[i])
	}
	w.logger.Warn("results answer other requests than those that their ids belong to: they become dead letters",
		"results", len(e.units), "error", pg.Describe(e))
}
