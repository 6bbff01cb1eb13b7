package status

import (
	"context"
	"fmt"

	"github.com/batchyard/batchyard/task"
)

// Known returns what is recorded about each of the tasks; an id without a record has no state. It looks
// each of them up by its key, to which OFFSET 0 forces the planner: for many keys it would otherwise read
// the whole table.
func (s *Store) Known(ctx context.Context, keys []task.Key) ([]task.Known, error) {
	out := make([]task.Known, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	tenants, ids := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		tenants[i], ids[i] = k.Tenant, k.ID
	}
	rows, err := s.pool.Query(ctx, `SELECT u.n, t.state, t.generation, t.fingerprint
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u (tenant, task_id, n)
		CROSS JOIN LATERAL (SELECT * FROM tasks t WHERE t.tenant = u.tenant AND t.task_id = u.task_id OFFSET 0) t`, tenants, ids)
	if err != nil {
		return nil, fmt.Errorf("looking up %d tasks: %w", len(keys), err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		var k task.Known
		var fingerprint []byte
		if err := rows.Scan(&n, &k.State, &k.Generation, &fingerprint); err != nil {
			return nil, fmt.Errorf("looking up %d tasks: %w", len(keys), err)
		}
		if n < 1 || n > len(out) {
			return nil, fmt.Errorf("looking up %d tasks: Postgres answered with number %d", len(keys), n)
		}
		copy(k.Fingerprint[:], fingerprint)
		out[n-1] = k
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("looking up %d tasks: %w", len(keys), err)
	}
	return out, nil
}
