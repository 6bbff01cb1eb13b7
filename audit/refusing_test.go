package audit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// TestPostgresMayTakeNoWrites has the database read-only, out of space, and with a
// constraint that nothing can meet: nothing is lost, it is told, and the recorder goes on by itself.
func TestPostgresMayTakeNoWrites(t *testing.T) {
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
			`ALTER TABLE audit_log ADD CONSTRAINT somebodys CHECK (actor_id = 'nobody') NOT VALID`,
			`ALTER TABLE audit_log DROP CONSTRAINT somebodys`,
			"23514",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			admin := func(sql string) { // also when sessions take no writes
				require.NoError(t, pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), sql)
					return err
				}))
			}
			r := newRig(t, pool)
			reg := prometheus.NewRegistry()
			m := metrics.New(reg)
			r.w.m, r.w.health.down = &m.Audit, m.Audit.PostgresDown
			log := newLines()
			r.w.log, r.w.health.log = log.logger(), log.logger()
			events := r.own("events", 0)
			s := newStory("t1")
			r.record(events.events(t, s.accepted()))

			admin(c.refuse)
			pool.Reset() // sessions that are there keep what they were told
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			done := make(chan error, 1)
			more := chunk{events.events(t, s.event(task.TaskQueued, 0, ""), s.event(task.TaskAssigned, 1, "d1"))}
			go func() { done <- r.w.record(ctx, more) }()
			log.await(t, "Postgres does not take what is to be recorded")
			log.await(t, c.says)
			require.Equal(t, 1.0, gauge(t, reg, "batchyard_audit_postgres_down"))
			require.Equal(t, 1, one[int](t, pool, "SELECT count(*) FROM audit_log"))

			admin(c.relent)
			log.await(t, "takes what is to be recorded again")
			select {
			case err := <-done:
				require.NoError(t, err)
			case <-time.After(patience):
				t.Fatal("it does not go on")
			}
			require.Zero(t, gauge(t, reg, "batchyard_audit_postgres_down"))
			require.Empty(t, r.sent, "nothing is dead that could be recorded later")
			requireChains(t, pool, map[place]int64{{"events", 0}: 3})
		})
	}
}
