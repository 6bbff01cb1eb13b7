package clusters

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/test/harness"
)

// pairURL is the URL of the database on both servers, of which the one that accepts writes is used.
func (c *Cluster) pairURL() string {
	return "postgres://batchyard:batchyard@" + c.Addrs("postgres", 2) + "/batchyard?sslmode=disable&target_session_attrs=read-write&connect_timeout=3"
}

// TestRecordingContinuesAfterAFailoverThatLostRows cuts the replication, lets the recorder record on,
// kills the primary and promotes the replica. The process goes on, and records what is lost from
// Kafka: each event once, each task once. Verify says that it was recorded again, and finds nothing.
func TestRecordingContinuesAfterAFailoverThatLostRows(t *testing.T) {
	c := Start(t, "postgres")
	services := harness.Get(t, harness.Shared)
	in := harness.Bare(t, services, map[string]any{"postgres.url": c.pairURL(), "audit.checkpoint_interval": "1s", "postgres.timeout": "10s"})
	in.DatabaseURL = c.pairURL()
	require.NoError(t, migrations.Up(t.Context(), in.DatabaseURL))
	in.CreateTopics(t)
	f := in.Fleet(t, fleet.Spec{ID: "d1", Slots: 16, ServiceTime: 2 * time.Millisecond}, fleet.Spec{ID: "d2", Slots: 16, ServiceTime: 2 * time.Millisecond})
	p := in.Process(t, "serve")
	submit := func(prefix string, n int) (ids []string) {
		for i := 0; i < n; i += 500 {
			batch, names := harness.Chats(fmt.Sprintf("%s%d-", prefix, i), 500)
			p.API().Submit(t, batch...)
			ids = append(ids, names...)
		}
		return ids
	}
	all := submit("a", 2000)
	in.Await(t, all, 2*time.Minute)
	c.Do(t, "cut")
	lost := submit("b", 3000)
	in.Await(t, lost, 2*time.Minute)
	all = append(all, lost...)
	// How many rows there are about other rows than events depends on which records share a transaction.
	const counted = "SELECT count(*) FROM audit_log WHERE action <> 'audit.rows_recorded'"
	rows, total := harness.SQL[int64](t, in, counted), harness.SQL[int64](t, in, "SELECT count(*) FROM audit_log")
	harness.Eventually(t, harness.Patience, "what will be lost is signed", func() bool { return signedRows(t, in) >= total })
	c.Do(t, "kill", "postgres-1")
	c.Do(t, "promote")
	replica, err := pgxpool.New(t.Context(), replaceHosts(c))
	require.NoError(t, err)
	t.Cleanup(replica.Close)
	var left int64
	require.NoError(t, replica.QueryRow(t.Context(), counted).Scan(&left))
	promoted := time.Now()
	more := submit("c", 500)
	all = append(all, more...)
	in.Pool(t).Reset()
	in.Await(t, all, 3*time.Minute)
	harness.Eventually(t, 3*time.Minute, "everything is recorded again", func() bool {
		return harness.SQL[int64](t, in, "SELECT count(*) FROM audit_log WHERE task_id IS NOT NULL") == harness.SQL[int64](t, in, "SELECT count(DISTINCT (src_topic, src_partition, src_offset, src_index)) FROM audit_log WHERE task_id IS NOT NULL") &&
			harness.SQL[int64](t, in, "SELECT count(*) FROM stream_breaks") > 0 && harness.SQL[int64](t, in, counted) > rows
	})
	t.Logf("%d audit rows were confirmed, and %d were lost; all were recorded again %.1f s after the promotion", rows, rows-left, time.Since(promoted).Seconds())
	select {
	case <-p.Done():
		t.Fatalf("the process ended with code %d", p.ExitCode())
	default:
	}
	for _, action := range []string{"task.accepted", "task.succeeded", "attempt.succeeded"} {
		require.Equal(t, int64(len(all)), harness.SQL[int64](t, in, "SELECT count(*) FROM audit_log WHERE action = $1", action), action)
	}
	served := int64(0)
	for _, d := range f.Devices() {
		served += d.Stats().Requests
	}
	require.Equal(t, int64(len(all)), served, "each task ran once")
	require.Positive(t, harness.SQL[int64](t, in, "SELECT count(*) FROM audit_log WHERE action = 'audit.recorded_again'"))
	require.Zero(t, p.Term(t))

	ledger := in.Begin(t, nil, "ledger", "check", "--settled")
	require.Zero(t, ledger.Wait(t, time.Minute), ledger.Output())
	verify := in.Begin(t, nil, "audit", "verify", "--allow-unproven", "all")
	require.Zero(t, verify.Wait(t, time.Minute), verify.Output())
	require.Contains(t, verify.Output(), "recorded them again from Kafka")
}

// signedRows is the number of rows in the newest checkpoint.
func signedRows(t testing.TB, in *harness.Installation) (rows int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(in.Dir, "audit-checkpoints", audit.CheckpointFile))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	c, err := audit.ParseCheckpoint([]byte(lines[len(lines)-1]))
	require.NoError(t, err)
	for _, chain := range c.Chains {
		if chain.Topic == audit.StatementsChain.Topic {
			continue
		}
		rows += chain.Rows
	}
	return rows
}

// replaceHosts is the URL of the replica alone.
func replaceHosts(c *Cluster) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("batchyard", "batchyard"), Host: strings.Split(c.Addrs("postgres", 2), ",")[1], Path: "/batchyard", RawQuery: "sslmode=disable"}
	return u.String()
}
