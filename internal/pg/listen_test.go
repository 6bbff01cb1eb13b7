package pg_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestNotificationsArriveDespiteLostConnectionsAndSilence(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), testenv.Get(t).Database(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	type heard struct {
		text string
		any  bool
	}
	got := make(chan heard, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pg.Listen(ctx, pool, pg.ListenOptions{
			Channel: "Odd name", Quiet: 100 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
			Notified: func(text string) { got <- heard{text, false} },
			Missed:   func() { got <- heard{"", true} },
		})
	}()
	next := func(want heard) {
		t.Helper()
		for end := time.After(30 * time.Second); ; {
			select {
			case h := <-got:
				if h == want {
					return
				}
			case <-end:
				t.Fatalf("%v did not arrive", want)
			}
		}
	}
	next(heard{"", true})
	_, err = pool.Exec(t.Context(), "SELECT pg_notify('Odd name', 'one')")
	require.NoError(t, err)
	next(heard{"one", false})
	next(heard{"", true}) // after a silence
	_, err = pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%' OR query = '-- ping'")
	require.NoError(t, err)
	for range 3 { // the old connection may have been quiet first
		next(heard{"", true})
	}
	_, err = pool.Exec(t.Context(), "SELECT pg_notify('Odd name', 'two')")
	require.NoError(t, err)
	next(heard{"two", false})
	cancel()
	<-ended
}
