package recorder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

func verified(t testing.TB, pool *pgxpool.Pool, o verify.Options) *verify.Report {
	t.Helper()
	r, err := verify.Run(t.Context(), pool, o, nil)
	require.NoError(t, err)
	return r
}

// trusted reads checkpoints from files, and trusts the sealer's key.
func trusted(t testing.TB, g *rig.Signing, paths ...string) *verify.Checkpoints {
	t.Helper()
	c := verify.NewCheckpoints(g.Keys())
	for _, p := range paths {
		require.NoError(t, c.Read(p, verify.FromDirectory))
	}
	return c
}

func TestATornLineIsCutOffAndNumbersContinue(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := rig.Grown(t, pool)
	f, err := os.OpenFile(g.File(), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"version":1,"number":4,"ti`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	rep := verified(t, pool, verify.Options{Checkpoints: trusted(t, g, g.Dir)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Notes), "has no end")

	g.Flush()
	g.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("more").Accepted()))
	g.Seal()
	require.Len(t, g.Lines(), 4)
	rep = verified(t, pool, verify.Options{Checkpoints: trusted(t, g, g.Dir)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.NotContains(t, fmt.Sprint(rep.Notes), "has no end")

	// The file is lost: the topic has the last number.
	g.Flush()
	require.NoError(t, os.Remove(g.File()))
	g.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("more").Accepted()))
	g.Seal()
	last, err := audit.ParseCheckpoint(g.Lines()[0])
	require.NoError(t, err)
	require.EqualValues(t, 5, last.Number)

	// Another recorder waits for its turn, and takes over.
	other := rig.NewSigning(t, pool)
	other.Seal()
	require.NoFileExists(t, other.File())
	g.Resign()
	other.Seal()
	require.Len(t, other.Lines(), 1)
}

// A recorder that dies between the file and the topic leaves no gap in the topic, which is all that
// others have.
func TestTheTopicGetsWhatOnlyTheFileHas(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r := rig.Grown(t, pool)
	g.Flush()
	g.RestartWithoutTopic()
	more := func() { r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("more").Accepted())) }
	more()
	g.Seal()
	require.Len(t, g.Lines(), 4)
	g.Restart()
	more()
	g.Seal()
	g.Flush()
	require.Len(t, g.Lines(), 5)
	c := trusted(t, g)
	require.NoError(t, c.ReadTopic(t.Context(), g.Log))
	rep := verified(t, pool, verify.Options{Checkpoints: c})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, 5, rep.Checkpoints)
}

func TestARecorderSealsWhenItStops(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	l := audittest.OpenLog(t, 3)
	dir := filepath.Join(t.TempDir(), "sub", "dir")
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	r := recorder.New(recorder.Config{CheckpointDir: dir, CheckpointInterval: time.Hour},
		recorder.Deps{Log: l, Pool: pool, Logger: audittest.Quiet(), Metrics: metrics.New(nil), Instance: "audit@end"})
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	<-ready
	out := l.NewOutbox("test", 100, 1<<20)
	acked := make(chan error, 1)
	require.NoError(t, out.Put(t.Context(), stream.Unit{Events: []task.Event{audittest.NewStory("t1").Accepted()}, Acked: func(err error) { acked <- err }}))
	require.NoError(t, <-acked)
	require.Eventually(t, func() bool { return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log") == 1 }, audittest.Patience, 5*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	keys, err := audit.ReadPublicKeys(filepath.Join(dir, audit.PublicKeyFile))
	require.NoError(t, err)
	c := verify.NewCheckpoints(keys)
	require.NoError(t, c.Read(dir, verify.FromDirectory))
	rep := verified(t, pool, verify.Options{Checkpoints: c})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, 1, rep.Chains[0].Signed)
	info, err := os.Stat(filepath.Join(dir, audit.SigningKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
