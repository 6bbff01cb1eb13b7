package recorder

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// TestPostgresMayRefuseWrites makes the database read-only, full, and refusing everything by a
// constraint. Nothing is lost, it is reported, and the recorder continues by itself.
func TestPostgresMayRefuseWrites(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ refuse, relent, says string }{
		"read-only": {
			`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`,
			`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$`,
			"25006",
		},
		"out of space": {
			`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
			 CREATE TRIGGER full_disk BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION full_disk()`,
			`DROP FUNCTION full_disk() CASCADE`,
			"53100",
		},
		"whatever it is": {
			`ALTER TABLE audit_log ADD CONSTRAINT foreign_check CHECK (actor_id = 'mallory') NOT VALID`,
			`ALTER TABLE audit_log DROP CONSTRAINT foreign_check`,
			"23514",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := audittest.NewPool(t)
			admin := func(sql string) { // also while sessions are read-only
				require.NoError(t, pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), sql)
					return err
				}))
			}
			r := newRig(t, pool)
			reg := prometheus.NewRegistry()
			m := metrics.New(reg)
			log := audittest.NewLines()
			r.w.metrics, r.w.logger, r.w.health = &m.Audit, log.Logger(), health.New(pool, log.Logger(), &m.Audit)
			events := r.own("events", 0)
			s := audittest.NewStory("t1")
			r.record(events.events(t, s.Accepted()))

			admin(c.refuse)
			pool.Reset() // existing sessions keep their settings
			ctx, cancel := context.WithTimeout(t.Context(), audittest.Patience)
			defer cancel()
			done := make(chan error, 1)
			more := chunk{events.events(t, s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskAssigned, 1, "d1"))}
			go func() { done <- r.w.record(ctx, more) }()
			log.Await(t, "Postgres does not accept writes")
			log.Await(t, c.says)
			require.Equal(t, 1.0, gauge(t, reg, "batchyard_audit_postgres_down"))
			require.Equal(t, 1, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log"))

			admin(c.relent)
			log.Await(t, "accepts writes again")
			select {
			case err := <-done:
				require.NoError(t, err)
			case <-time.After(audittest.Patience):
				t.Fatal("it did not continue")
			}
			require.Zero(t, gauge(t, reg, "batchyard_audit_postgres_down"))
			require.Empty(t, r.sent, "nothing becomes a dead letter that can be recorded later")
			audittest.RequireChains(t, pool, map[string]int64{"events/0": 3})
		})
	}
}
