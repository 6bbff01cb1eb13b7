package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// signing is a recorder's part that writes checkpoints.
type signing struct {
	t    *testing.T
	log  *stream.Log
	out  *stream.Outbox
	pool *pgxpool.Pool
	dir  string
	s    *sealer
}

func newSigning(t *testing.T, pool *pgxpool.Pool) *signing {
	env := testenv.Get(t)
	g := &signing{t: t, log: newLog(t, env, env.Prefix(t)), pool: pool, dir: filepath.Join(t.TempDir(), "checkpoints")}
	g.out = g.log.NewOutbox("test", 100, 1<<20)
	g.restart()
	t.Cleanup(func() { g.s.leave() })
	return g
}

// restart is what a new process does.
func (g *signing) restart() {
	if g.s != nil {
		g.s.leave()
	}
	g.s = NewRecorder(g.log, g.pool, Config{CheckpointDir: g.dir}, quiet(), metrics.New(nil), "audit@test-1").newSealer(g.out)
}

func (g *signing) write() { g.s.round(g.t.Context(), patience) }

// flushed waits until the topic has what was written.
func (g *signing) flushed() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	require.NoError(g.t, g.out.Close(ctx))
	g.out = g.log.NewOutbox("test", 100, 1<<20)
	g.s.out = g.out
}

func (g *signing) path() string { return filepath.Join(g.dir, checkpointFile) }

func (g *signing) keys() []ed25519.PublicKey {
	g.t.Helper()
	keys, err := ReadPublicKeys(filepath.Join(g.dir, publicKeyFile))
	require.NoError(g.t, err)
	return keys
}

func (g *signing) lines() [][]byte {
	g.t.Helper()
	b, err := os.ReadFile(g.path())
	require.NoError(g.t, err)
	return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

// read takes in checkpoints from the files given, and nothing else.
func (g *signing) read(paths ...string) *Checkpoints {
	g.t.Helper()
	c := NewCheckpoints(g.keys())
	for _, p := range paths {
		require.NoError(g.t, c.Read(p))
	}
	return c
}

// with is a file of the given lines.
func (g *signing) with(lines ...[]byte) string {
	g.t.Helper()
	path := filepath.Join(g.t.TempDir(), "copy.jsonl")
	require.NoError(g.t, os.WriteFile(path, append(bytes.Join(lines, []byte("\n")), '\n'), 0o600))
	return path
}

// grown are three checkpoints over a growing log, at rows 72, 73 and 74 of events/0.
func grown(t *testing.T) (*signing, *rig) {
	pool := newPool(t)
	r := chained(t, pool)
	g := newSigning(t, pool)
	e0 := r.w.offsets.current("events", 0)
	g.write()
	for range 2 {
		r.record(e0.events(t, newStory("more").accepted()))
		g.write()
		g.write() // nothing is new
	}
	require.Len(t, g.lines(), 3)
	return g, r
}

func TestAChainThatWasMadeAnewIsFound(t *testing.T) {
	t.Parallel()
	g, _ := grown(t)
	g.flushed()
	fromTopic := NewCheckpoints(g.keys())
	require.NoError(t, fromTopic.ReadTopic(t.Context(), g.log))
	for i, c := range []*Checkpoints{g.read(g.dir), fromTopic, g.read(g.dir, g.path())} {
		rep := verify(t, g.pool, VerifyOptions{Checkpoints: c})
		require.True(t, rep.OK(), "%d: %+v", i, rep.Findings)
		require.Equal(t, 3, rep.Checkpoints)
		require.EqualValues(t, 74, rep.Chains[0].Signed)
		require.EqualValues(t, rowsOf1, rep.Chains[1].Signed)
	}
	execute(t, g.pool, "CREATE TABLE saved AS SELECT * FROM audit_log")
	execute(t, g.pool, "CREATE TABLE saved_ends AS SELECT * FROM audit_chains")
	const of0 = " src_topic = 'events' AND src_partition = 0 "
	for _, c := range []struct {
		name     string
		do       func()
		from, to int64
		alone    bool // it fits in itself: nothing but checkpoints tells
	}{
		{"all from row 30 on", func() {
			execute(t, g.pool, "UPDATE audit_log SET actor_id = 'nobody' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, g.pool, 30, 74, true)
		}, 1, 72, true},
		{"the last row", func() {
			execute(t, g.pool, "UPDATE audit_log SET actor_id = 'nobody' WHERE"+of0+"AND chain_seq = 74")
			rehash(t, g.pool, 74, 74, true)
		}, 74, 0, true},
		{"one row less", func() {
			execute(t, g.pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 74")
			execute(t, g.pool, "UPDATE audit_chains SET rows = 73, hash = (SELECT row_hash FROM audit_log WHERE"+of0+"AND chain_seq = 73) WHERE topic = 'events' AND partition = 0")
		}, 74, 74, true},
		{"all that was signed after the first checkpoint, and more", func() {
			execute(t, g.pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq > 70")
			execute(t, g.pool, "UPDATE audit_chains SET rows = 70, hash = (SELECT row_hash FROM audit_log WHERE"+of0+"AND chain_seq = 70) WHERE topic = 'events' AND partition = 0")
		}, 71, 74, true},
		{"the whole chain is gone", func() {
			execute(t, g.pool, "DELETE FROM audit_log WHERE"+of0)
			execute(t, g.pool, "DELETE FROM audit_chains WHERE topic = 'events' AND partition = 0")
		}, 1, 74, true},
	} {
		c.do()
		require.True(t, verify(t, g.pool, VerifyOptions{}).OK(), c.name)
		rep := verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.dir)})
		require.EqualValues(t, 1, rep.Count, "%s: %+v", c.name, rep.Findings)
		f := rep.Findings[0]
		require.Equal(t, []any{Rewritten, "events/0", c.from, c.to}, []any{f.Reason, f.Chain(), f.Seq, f.To}, "%s: %+v", c.name, rep.Findings)
		execute(t, g.pool, "TRUNCATE audit_log, audit_chains")
		execute(t, g.pool, "INSERT INTO audit_log SELECT * FROM saved")
		execute(t, g.pool, "INSERT INTO audit_chains SELECT * FROM saved_ends")
	}
	// What is wrong in itself is told as that, and not as made anew.
	execute(t, g.pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq > 70")
	rep := verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.dir)})
	require.EqualValues(t, 1, rep.Count, "%+v", rep.Findings)
	require.Equal(t, Missing, rep.Findings[0].Reason)
}

func TestCheckpointsThatAreNotRightAreTold(t *testing.T) {
	t.Parallel()
	g, _ := grown(t)
	lines := g.lines()
	ask := func(what string, c *Checkpoints) *Report {
		rep := verify(t, g.pool, VerifyOptions{Checkpoints: c})
		require.False(t, rep.OK(), what)
		for _, f := range rep.Findings {
			require.Equal(t, Checkpoint, f.Reason, "%s: %+v", what, f)
		}
		return rep
	}
	forged := bytes.Replace(lines[1], []byte(`"rows":73`), []byte(`"rows":72`), 1)
	require.NotEqual(t, lines[1], forged)
	rep := ask("changed after it was signed", g.read(g.with(lines[0], forged, lines[2])))
	require.Contains(t, rep.Findings[0].Detail+rep.Findings[1].Detail, "forged")

	rep = ask("one was removed", g.read(g.with(lines[0], lines[2])))
	require.Contains(t, rep.Findings[0].Detail, "checkpoint number 2 ")
	require.True(t, verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.with(lines[1], lines[2]))}).OK(), "older ones need not be at hand")
	require.True(t, verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.with(lines[0], lines[2]), g.with(lines[1]))}).OK(), "it may be elsewhere")

	rep = ask("no checkpoint", g.read(g.with(lines[0], []byte(`{"version":1}`), lines[1])))
	require.Contains(t, rep.Findings[0].Detail, "line 2 of")
	ask("a signature that is none", g.read(g.with(bytes.Replace(lines[0], []byte(signatureMark), []byte(signatureMark+"AAAA"), 1))))

	// Another key, under the name of the one that is trusted, and under its own.
	_, other, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	parsed, err := parseCheckpoint(lines[2])
	require.NoError(t, err)
	lie := parsed.checkpoint
	lie.Chains[0].Rows = 71
	line, err := lie.sign(other)
	require.NoError(t, err)
	rep = ask("signed by another", g.read(g.with(line)))
	require.Contains(t, rep.Findings[0].Detail, "forged")
	lie.Signer = KeyID(other.Public().(ed25519.PublicKey))
	line, err = lie.sign(other)
	require.NoError(t, err)
	rep = ask("a key that nobody trusts", g.read(g.dir, g.with(line)))
	require.Contains(t, rep.Findings[0].Detail, "--public-key")
	require.Equal(t, 3, rep.Checkpoints)
}

func TestATornLineIsCutOffAndNumbersGoOn(t *testing.T) {
	t.Parallel()
	g, r := grown(t)
	f, err := os.OpenFile(g.path(), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"version":1,"number":4,"ti`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	rep := verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.dir)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Contains(t, fmt.Sprint(rep.Notes), "has no end")

	g.flushed()
	g.restart()
	r.record(r.w.offsets.current("events", 0).events(t, newStory("more").accepted()))
	g.write()
	require.Len(t, g.lines(), 4)
	rep = verify(t, g.pool, VerifyOptions{Checkpoints: g.read(g.dir)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.NotContains(t, fmt.Sprint(rep.Notes), "has no end")

	// The file is lost: the topic knows how far the numbers are.
	g.flushed()
	require.NoError(t, os.Remove(g.path()))
	g.restart()
	r.record(r.w.offsets.current("events", 0).events(t, newStory("more").accepted()))
	g.write()
	last, err := parseCheckpoint(g.lines()[0])
	require.NoError(t, err)
	require.EqualValues(t, 5, last.Number)

	// Another recorder waits for its turn, and takes over.
	other := newSigning(t, g.pool)
	other.write()
	require.NoFileExists(t, other.path())
	g.s.leave()
	other.write()
	require.Len(t, other.lines(), 1)
}

// A recorder that dies between the file and the topic leaves no hole in the topic,
// which is all that others have.
func TestTheTopicGetsWhatOnlyTheFileHas(t *testing.T) {
	t.Parallel()
	g, r := grown(t)
	g.flushed()
	good := g.s.out
	gone := g.log.NewOutbox("gone", 1, 1<<20)
	require.NoError(t, gone.Close(t.Context()))
	g.s.out = gone
	more := func() { r.record(r.w.offsets.current("events", 0).events(t, newStory("more").accepted())) }
	more()
	g.write()
	require.Len(t, g.lines(), 4)
	g.out = good
	g.restart()
	more()
	g.write()
	g.flushed()
	require.Len(t, g.lines(), 5)
	c := g.read()
	require.NoError(t, c.ReadTopic(t.Context(), g.log))
	rep := verify(t, g.pool, VerifyOptions{Checkpoints: c})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, 5, rep.Checkpoints)
}

func TestARecorderSignsWhenItEnds(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	env := testenv.Get(t)
	l := newLog(t, env, env.Prefix(t))
	dir := filepath.Join(t.TempDir(), "sub", "dir")
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	r := NewRecorder(l, pool, Config{CheckpointDir: dir, CheckpointInterval: time.Hour}, quiet(), metrics.New(nil), "audit@end")
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	<-ready
	out := l.NewOutbox("test", 100, 1<<20)
	acked := make(chan error, 1)
	require.NoError(t, out.Put(t.Context(), stream.Unit{Events: []task.Event{newStory("t1").accepted()}, Acked: func(err error) { acked <- err }}))
	require.NoError(t, <-acked)
	require.Eventually(t, func() bool { return one[int](t, pool, "SELECT count(*) FROM audit_log") == 1 }, patience, 5*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	keys, err := ReadPublicKeys(filepath.Join(dir, publicKeyFile))
	require.NoError(t, err)
	c := NewCheckpoints(keys)
	require.NoError(t, c.Read(dir))
	rep := verify(t, pool, VerifyOptions{Checkpoints: c})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, 1, rep.Chains[0].Signed)
	info, err := os.Stat(filepath.Join(dir, signingKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func FuzzParseCheckpoint(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(f, err)
	c := checkpoint{Version: 1, Number: 3, Signer: "x", Chains: []checkpointEnd{{"events", 0, 7, "00"}}}
	line, err := c.sign(key)
	require.NoError(f, err)
	f.Add(line)
	f.Add([]byte(`{"version":1,"signature":"` + base64.StdEncoding.EncodeToString([]byte("x")) + `"}`))
	f.Add([]byte(`,"signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseCheckpoint(b)
		if err == nil {
			_ = s.by(key.Public().(ed25519.PublicKey))
		}
	})
}
