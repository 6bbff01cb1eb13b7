package rig

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/sealer"
	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/audittest"
)

// Signing is a sealer with a directory and topics of its own.
type Signing struct {
	t   testing.TB
	Log *stream.Client
	Dir string
	// Witnesses cosign what the next sealer signs, and Copies are directories that it copies it to.
	Witnesses []witness.Remote
	Copies    []string
	pool      *pgxpool.Pool
	out       *stream.Outbox
	sealer    *sealer.Sealer
}

// NewSigning returns a sealer of the log in a database.
func NewSigning(t testing.TB, pool *pgxpool.Pool) *Signing {
	t.Helper()
	return SigningIn(t, pool, filepath.Join(t.TempDir(), "checkpoints"))
}

// SigningIn returns a sealer with the key and the checkpoints of a directory, and topics of its own.
func SigningIn(t testing.TB, pool *pgxpool.Pool, dir string) *Signing {
	t.Helper()
	g := &Signing{t: t, Log: audittest.OpenLog(t, 3), pool: pool, Dir: dir}
	g.out = g.Log.NewOutbox("test", 100, 1<<20)
	g.Restart()
	t.Cleanup(func() { g.Resign() })
	return g
}

// Restart replaces the sealer by a new one, as a new process does.
func (g *Signing) Restart() { g.restartOn(g.out) }

// RestartWithoutTopic replaces the sealer by a new one that cannot write to the topic.
func (g *Signing) RestartWithoutTopic() {
	g.t.Helper()
	closed := g.Log.NewOutbox("closed", 1, 1<<20)
	require.NoError(g.t, closed.Close(g.t.Context()))
	g.restartOn(closed)
}

func (g *Signing) restartOn(out *stream.Outbox) {
	if g.sealer != nil {
		g.sealer.Resign()
	}
	g.sealer = sealer.New(sealer.Config{Dir: g.Dir, Interval: time.Minute, Witnesses: g.Witnesses, Copies: g.Copies},
		sealer.Deps{Log: g.Log, Outbox: out, Pool: g.pool, Logger: audittest.Quiet(), Metrics: &metrics.New(nil).Audit, Instance: "audit@test-1"})
}

// Seal writes a checkpoint if something has changed.
func (g *Signing) Seal() { g.sealer.Seal(g.t.Context()) }

// Cosign asks the witnesses once.
func (g *Signing) Cosign() { g.sealer.Cosign(g.t.Context()) }

// Resign ends the sealer's duty.
func (g *Signing) Resign() { g.sealer.Resign() }

// Flush waits until the topic has what was written. The sealer is a new one afterwards.
func (g *Signing) Flush() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), audittest.Patience)
	defer cancel()
	require.NoError(g.t, g.out.Close(ctx))
	g.out = g.Log.NewOutbox("test", 100, 1<<20)
	g.Restart()
}

// Key returns the key that checkpoints are signed with.
func (g *Signing) Key() ed25519.PrivateKey { return g.sealer.Key() }

// File returns the path of the file of checkpoints.
func (g *Signing) File() string { return filepath.Join(g.Dir, audit.CheckpointFile) }

// Keys returns the public key of the sealer.
func (g *Signing) Keys() []ed25519.PublicKey {
	g.t.Helper()
	keys, err := audit.ReadPublicKeys(filepath.Join(g.Dir, audit.PublicKeyFile))
	require.NoError(g.t, err)
	return keys
}

// Lines returns the checkpoints in the file.
func (g *Signing) Lines() [][]byte {
	g.t.Helper()
	b, err := os.ReadFile(g.File())
	require.NoError(g.t, err)
	return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

// FileOf returns the path of a file with the given lines.
func (g *Signing) FileOf(lines ...[]byte) string {
	g.t.Helper()
	path := filepath.Join(g.t.TempDir(), "copy.jsonl")
	require.NoError(g.t, os.WriteFile(path, append(bytes.Join(lines, []byte("\n")), '\n'), 0o600))
	return path
}

// Grown writes three checkpoints over a growing log, at rows 72, 73 and 74 of events/0.
func Grown(t testing.TB, pool *pgxpool.Pool) (*Signing, *Rig) {
	t.Helper()
	r := Chained(t, pool)
	g := NewSigning(t, pool)
	r.Key = g.Key()
	e0 := r.Owned("events", 0)
	g.Seal()
	for range 2 {
		r.Record(e0.Events(t, audittest.NewStory("more").Accepted()))
		g.Seal()
		g.Seal() // nothing is new
	}
	require.Len(t, g.Lines(), 3)
	return g, r
}
