package verify

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// trusted reads checkpoints from files, and trusts the sealer's key.
func trusted(t testing.TB, g *rig.Signing, paths ...string) *Checkpoints {
	t.Helper()
	c := NewCheckpoints(g.Keys())
	for _, p := range paths {
		require.NoError(t, c.Read(p, FromDirectory))
	}
	return c
}

func TestARewrittenChainIsFound(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	g.Flush()
	fromTopic := NewCheckpoints(g.Keys())
	require.NoError(t, fromTopic.ReadTopic(t.Context(), g.Log))
	for i, c := range []*Checkpoints{trusted(t, g, g.Dir), fromTopic, trusted(t, g, g.Dir, g.File())} {
		rep := verify(t, pool, Options{Checkpoints: c})
		require.True(t, rep.OK(), "%d: %+v", i, rep.Findings)
		require.Equal(t, 3, rep.Checkpoints)
		require.EqualValues(t, 74, rep.Chains[0].Signed)
		require.EqualValues(t, rig.RowsOfEvents1, rep.Chains[1].Signed)
	}
	audittest.Execute(t, pool, "CREATE TABLE saved AS SELECT * FROM audit_log")
	audittest.Execute(t, pool, "CREATE TABLE saved_ends AS SELECT * FROM audit_chains")
	const of0 = " src_topic = 'events' AND src_partition = 0 "
	for _, c := range []struct {
		name     string
		do       func()
		from, to int64
		alone    bool // the chain is consistent in itself: only checkpoints show it
	}{
		{"all from row 30 on", func() {
			audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, pool, 30, 74, true)
		}, 1, 72, true},
		{"the last row", func() {
			audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE"+of0+"AND chain_seq = 74")
			rehash(t, pool, 74, 74, true)
		}, 74, 0, true},
		{"one row less", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 74")
			audittest.Execute(t, pool, "UPDATE audit_chains SET rows = 73, hash = (SELECT row_hash FROM audit_log WHERE"+of0+"AND chain_seq = 73) WHERE topic = 'events' AND partition = 0")
			retree(t, pool)
		}, 74, 74, true},
		{"all that was signed after the first checkpoint, and more", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq > 70")
			audittest.Execute(t, pool, "UPDATE audit_chains SET rows = 70, hash = (SELECT row_hash FROM audit_log WHERE"+of0+"AND chain_seq = 70) WHERE topic = 'events' AND partition = 0")
			retree(t, pool)
		}, 71, 74, true},
		{"the whole chain is gone", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0)
			audittest.Execute(t, pool, "DELETE FROM audit_chains WHERE topic = 'events' AND partition = 0")
		}, 1, 74, true},
	} {
		c.do()
		// Rows that are gone have left how far they were recorded in stream_offsets and in other chains.
		gone := strings.Contains(c.name, "less") || strings.Contains(c.name, "all that was signed") || strings.Contains(c.name, "is gone")
		require.Equal(t, !gone, verify(t, pool, Options{LogOnly: true}).OK(), c.name)
		rep := verify(t, pool, Options{LogOnly: true, Checkpoints: trusted(t, g, g.Dir)})
		rep.Findings = slices.DeleteFunc(rep.Findings, func(f Finding) bool { return strings.Contains(f.Detail, "stream_offsets") })
		require.Len(t, rep.Findings, 1, c.name)
		f := rep.Findings[0]
		require.Equal(t, []any{Rewritten, "events/0", c.from, c.to}, []any{f.Reason, f.Chain(), f.Seq, f.To}, "%s: %+v", c.name, rep.Findings)
		audittest.Execute(t, pool, "TRUNCATE audit_log, audit_chains")
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		audittest.Execute(t, pool, "INSERT INTO audit_chains SELECT * FROM saved_ends")
	}
	// What is inconsistent in itself is reported as that, and not as rewritten.
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq > 70")
	rep := verify(t, pool, Options{LogOnly: true, Checkpoints: trusted(t, g, g.Dir)})
	require.EqualValues(t, 1, rep.Count, "%+v", rep.Findings)
	require.Equal(t, Missing, rep.Findings[0].Reason)
}

func TestWrongCheckpointsAreReported(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	lines := g.Lines()
	const noteMark = `,"note":"`
	ask := func(what string, c *Checkpoints) *Report {
		rep := verify(t, pool, Options{Checkpoints: c})
		require.False(t, rep.OK(), what)
		for _, f := range rep.Findings {
			require.Equal(t, Checkpoint, f.Reason, "%s: %+v", what, f)
		}
		return rep
	}
	forged := bytes.Replace(lines[1], []byte(`"rows":73`), []byte(`"rows":72`), 1)
	require.NotEqual(t, lines[1], forged)
	rep := ask("changed after it was signed", trusted(t, g, g.FileOf(lines[0], forged, lines[2])))
	require.Contains(t, rep.Findings[0].Detail+rep.Findings[1].Detail, "its path does not lead to the root in its note")

	rep = ask("one was removed", trusted(t, g, g.FileOf(lines[0], lines[2])))
	require.Contains(t, rep.Findings[0].Detail, "checkpoint number 2 ")
	require.True(t, verify(t, pool, Options{Checkpoints: trusted(t, g, g.FileOf(lines[1], lines[2]))}).OK(), "older ones need not be available")
	require.True(t, verify(t, pool, Options{Checkpoints: trusted(t, g, g.FileOf(lines[0], lines[2]), g.FileOf(lines[1]))}).OK(), "it may be elsewhere")

	rep = ask("no checkpoint", trusted(t, g, g.FileOf(lines[0], []byte(`{"version":1}`), lines[1])))
	require.Contains(t, rep.Findings[0].Detail, "line 2 of")
	ask("a malformed note", trusted(t, g, g.FileOf(bytes.Replace(lines[0], []byte(noteMark), []byte(noteMark+"AAAA"), 1))))

	// Another key, under the name of the trusted one, and under its own.
	_, other, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	parsed, err := audit.ParseCheckpoint(lines[2])
	require.NoError(t, err)
	before, err := audit.ParseCheckpoint(lines[1])
	require.NoError(t, err)
	log := before.Log()
	lie := parsed.Checkpoint
	lie.Chains[0].Rows = 71
	line, _, err := lie.Sign(other, &log)
	require.NoError(t, err)
	rep = ask("signed by another", trusted(t, g, g.FileOf(line)))
	require.Contains(t, rep.Findings[0].Detail, "forged")
	lie.Signer = audit.KeyID(other.Public().(ed25519.PublicKey))
	log = before.Log()
	line, _, err = lie.Sign(other, &log)
	require.NoError(t, err)
	rep = ask("an untrusted key", trusted(t, g, g.Dir, g.FileOf(line)))
	require.Contains(t, rep.Findings[0].Detail, "--public-key")
	require.Equal(t, 3, rep.Checkpoints)
}
