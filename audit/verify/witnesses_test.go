package verify

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// outside is a witness on another machine.
type outside struct {
	t      testing.TB
	cfg    witness.Config
	server *witness.Server
	http   *httptest.Server
	remote witness.Remote
	client *witness.Client
}

func logKeyOf(t testing.TB, g *rig.Signing) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.Dir, audit.LogKeyFile))
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// newOutside starts a witness of the given logs.
func newOutside(t testing.TB, logs ...string) *outside {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	o := &outside{t: t, cfg: witness.Config{Name: "witness.example.com", Key: key, Dir: t.TempDir(), Logs: logs, Logger: slog.New(slog.DiscardHandler)}}
	o.start()
	t.Cleanup(o.stop)
	return o
}

func (o *outside) start() {
	o.t.Helper()
	var err error
	o.server, err = witness.New(o.cfg)
	require.NoError(o.t, err)
	o.http = httptest.NewServer(o.server)
	o.remote.URL = o.http.URL
	o.remote.Key, err = audit.WitnessKey(o.cfg.Name, o.cfg.Key.Public().(ed25519.PublicKey))
	require.NoError(o.t, err)
	o.client, err = witness.NewClient(o.remote)
	require.NoError(o.t, err)
}

func (o *outside) stop() {
	o.client.Close()
	o.http.Close()
	_ = o.server.Close()
}

// trusting reads checkpoints from files, as [trusted] does, and trusts the witness too. It knows what the witness has cosigned
// last if asked is true.
func (o *outside) trusting(g *rig.Signing, asked bool, paths ...string) *Checkpoints {
	o.t.Helper()
	c := NewCheckpoints(g.Keys())
	c.TrustWitnesses(1, o.client.Verifier())
	if asked {
		signed, err := o.client.Newest(o.t.Context(), audit.DefaultOrigin(g.Keys()[0]))
		require.NoError(o.t, err)
		require.NotNil(o.t, signed)
		c.Asked(o.client.Verifier(), audit.KeyID(g.Keys()[0]), signed, nil)
	}
	for _, p := range paths {
		require.NoError(o.t, c.Read(p, FromDirectory))
	}
	return c
}

// witnessed makes a log whose checkpoints are cosigned.
func witnessed(t testing.TB, pool *pgxpool.Pool) (*rig.Signing, *rig.Rig, *outside) {
	t.Helper()
	g, r := rig.Grown(t, pool)
	o := newOutside(t, logKeyOf(t, g))
	g.Witnesses = []witness.Remote{o.remote}
	g.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("witnessed").Accepted()))
	g.Seal()
	g.Cosign()
	return g, r, o
}

func TestAWitnessProvesTheLogAgainstKafka(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r, o := witnessed(t, pool)
	ask := func(c *Checkpoints) *Report { return verify(t, pool, Options{LogOnly: true, Checkpoints: c}) }

	rep := ask(o.trusting(g, true, g.Dir))
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, Well, rep.Verdict(), "%+v", rep.Gaps)
	require.Equal(t, 4, rep.Checkpoints)
	for _, p := range rep.Proofs {
		require.True(t, p.Proven, "%+v", p)
		require.Zero(t, p.Missing, "%+v", p)
	}
	rep = ask(trusted(t, g, g.Dir))
	require.Equal(t, Unproven, rep.Verdict(), "its signature counts for those who trust the witness")

	// The witness is down: recording and signing go on, and what is newer is not proven.
	o.stop()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("later").Accepted()))
	g.Seal()
	g.Cosign()
	rep = ask(o.trusting(g, false, g.Dir))
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, Unproven, rep.Verdict())
	require.True(t, rep.Proofs[0].Proven)
	require.Zero(t, rep.Proofs[0].Missing)
	require.EqualValues(t, 1, rep.Proofs[2].Missing)

	// It is back, and the recorder is a new process, which has the last checkpoint cosigned although nothing is new.
	o.start()
	g.Witnesses = []witness.Remote{o.remote}
	g.Flush()
	g.Seal()
	g.Cosign()
	rep = ask(o.trusting(g, true, g.Dir))
	require.Equal(t, Well, rep.Verdict(), "%+v %+v", rep.Gaps, rep.Findings)

	// A quorum that is not reached proves nothing.
	c := o.trusting(g, false)
	c.TrustWitnesses(2, o.client.Verifier())
	require.NoError(t, c.Read(g.Dir, FromDirectory))
	require.Equal(t, Unproven, ask(c).Verdict())
}

func TestRemovedCheckpointsAreKnownToTheWitness(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _, o := witnessed(t, pool)
	lines := g.Lines()
	rep := verify(t, pool, Options{LogOnly: true, Checkpoints: o.trusting(g, true, g.FileOf(lines[:3]...))})
	require.EqualValues(t, 1, rep.Count, "%+v", rep.Findings)
	require.Contains(t, rep.Findings[0].Detail, "checkpoints 4 to 4 of signer")
}

// Someone sets the database and the checkpoint directory back together while the witness does not answer: that everything is
// proven could not be said.
func TestASilentWitnessProvesNothing(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _, o := witnessed(t, pool)
	signer, down := audit.KeyID(g.Keys()[0]), errors.New("the witness is down")
	newest, err := o.client.Newest(t.Context(), audit.DefaultOrigin(g.Keys()[0]))
	require.NoError(t, err)
	second := newOutside(t, logKeyOf(t, g)).client.Verifier()
	for name, c := range map[string]struct {
		quorum int
		ask    func(*Checkpoints)
		files  []string
		says   string // empty: all is well
	}{
		"it answers":               {1, func(c *Checkpoints) { c.Asked(o.client.Verifier(), signer, newest, nil) }, []string{g.Dir}, ""},
		"it is down":               {1, func(c *Checkpoints) { c.Asked(o.client.Verifier(), signer, nil, down) }, []string{g.Dir}, "the witness is down"},
		"it was not asked":         {1, func(*Checkpoints) {}, []string{g.Dir}, "was not asked"},
		"it does not say":          {1, func(c *Checkpoints) { c.Asked(o.client.Verifier(), signer, nil, nil) }, []string{g.Dir}, "does not say"},
		"there are no checkpoints": {1, func(c *Checkpoints) { c.Asked(o.client.Verifier(), signer, newest, nil) }, nil, "there is no checkpoint of signer"},
		"one of two, and one has to sign": {1, func(c *Checkpoints) {
			c.TrustWitnesses(1, o.client.Verifier(), second)
			c.Asked(o.client.Verifier(), signer, newest, nil)
		}, []string{g.Dir}, "was not asked"},
		"no checkpoints, and it is silent": {1, func(c *Checkpoints) { c.Asked(o.client.Verifier(), signer, nil, down) }, nil, "the witness is down"},
	} {
		t.Run(name, func(t *testing.T) {
			checkpoints := NewCheckpoints(g.Keys())
			checkpoints.TrustWitnesses(c.quorum, o.client.Verifier())
			c.ask(checkpoints)
			for _, f := range c.files {
				require.NoError(t, checkpoints.Read(f, FromDirectory))
			}
			rep := verify(t, pool, Options{LogOnly: true, Checkpoints: checkpoints})
			require.True(t, rep.OK(), "%+v", rep.Findings)
			if c.says == "" {
				require.Equal(t, Well, rep.Verdict(), "%+v", rep.Gaps)
				return
			}
			require.True(t, slices.ContainsFunc(rep.Gaps, func(g Gap) bool { return g.Kind == GapWitness && strings.Contains(g.Detail, c.says) }), "%+v", rep.Gaps)
			require.Equal(t, Unproven, rep.Verdict(GapCheckpoints, GapTail, GapCopies))
		})
	}
}

// forge writes a new history of checkpoints for the chains as they are now, as someone can who has the key.
func forge(t testing.TB, pool *pgxpool.Pool, g *rig.Signing, n int) (lines [][]byte, last *audit.SignedCheckpoint) {
	t.Helper()
	var log audit.Edge
	for _, line := range g.Lines()[:n] {
		c, err := audit.ParseCheckpoint(line)
		require.NoError(t, err)
		lie := c.Checkpoint
		for i := range lie.Chains {
			e := &lie.Chains[i]
			if e.Topic == audit.StatementsChain.Topic {
				continue
			}
			e.Hash = audittest.One[string](t, pool, "SELECT encode(row_hash, 'hex') FROM audit_log WHERE src_topic = $1 AND src_partition = $2 AND chain_seq = $3", e.Topic, e.Partition, e.Rows)
			e.Root = hex.EncodeToString(rootOf(t, pool, e.At(), e.Rows))
		}
		line, _, err := lie.Sign(g.Key(), &log)
		require.NoError(t, err)
		if last, err = audit.ParseCheckpoint(line); err != nil {
			require.NoError(t, err)
		}
		lines = append(lines, line)
	}
	return lines, last
}

func rootOf(t testing.TB, pool *pgxpool.Pool, at audit.TopicPartition, rows int64) []byte {
	t.Helper()
	var tree audit.Edge
	for seq := int64(1); seq <= rows; seq++ {
		tree.Append(audit.RowLeaf(audit.Hash(audittest.One[[]byte](t, pool, "SELECT row_hash FROM audit_log WHERE src_topic = $1 AND src_partition = $2 AND chain_seq = $3", at.Topic, at.Partition, seq))), nil)
	}
	root := tree.Root()
	return root[:]
}

// Someone with the database, the checkpoint directory, Kafka and the key of the log rewrites all of it: everything is
// consistent, and only the witness shows it.
func TestAHistoryRewrittenWithTheKeyIsFound(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, _, o := witnessed(t, pool)
	audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE "+tail0+" AND chain_seq = 30")
	rehash(t, pool, 30, 75, true)
	lines, last := forge(t, pool, g, 4)
	file := g.FileOf(lines...)
	rep := verify(t, pool, Options{LogOnly: true, Checkpoints: trusted(t, g, file)})
	require.True(t, rep.OK(), "without the witness it is consistent: %+v", rep.Findings)

	rep = verify(t, pool, Options{LogOnly: true, Checkpoints: o.trusting(g, true, file)})
	require.EqualValues(t, 1, rep.Count, "%+v", rep.Findings)
	require.Equal(t, Checkpoint, rep.Findings[0].Reason)
	require.Contains(t, rep.Findings[0].Detail, "has cosigned another checkpoint number 4")

	// Nor does it cosign the forged history, at whatever size.
	_, err := o.client.Cosign(t.Context(), last.Note, nil)
	disagrees := new(witness.DisagreesError)
	require.ErrorAs(t, err, &disagrees)

	// A cosignature of a stranger does not help.
	stranger := newOutside(t, logKeyOf(t, g))
	sig, err := stranger.client.Cosign(t.Context(), last.Note, nil)
	require.NoError(t, err)
	signed := string(last.Note) + "— " + sig.Name + " " + sig.Base64 + "\n"
	line, err := (&audit.Cosigned{Note: signed, Number: 4, Signer: last.Signer}).Line()
	require.NoError(t, err)
	rep = verify(t, pool, Options{LogOnly: true, Checkpoints: o.trusting(g, true, g.FileOf(append(lines, line)...))})
	require.False(t, rep.OK())
}

// Someone with the database changes the tree before a recorder signs it, so that a proof could lead to a row that never was.
func TestATreeThatIsNotThatOfTheRowsIsFound(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r, o := witnessed(t, pool)
	e0 := r.Owned("events", 0)
	for i := range 10 {
		for j := range 30 {
			r.Record(e0.Events(t, audittest.NewStory(fmt.Sprintf("many%d-%d", i, j)).Accepted()))
		}
	}
	g.Seal()
	g.Cosign()
	ask := func() *Report {
		return verify(t, pool, Options{LogOnly: true, Checkpoints: o.trusting(g, true, g.Dir)})
	}
	require.Equal(t, Well, ask().Verdict(), "%+v", ask())
	audittest.Execute(t, pool, "CREATE TABLE saved_tree AS TABLE audit_tree")
	require.Equal(t, 1, audittest.One[int](t, pool, "SELECT count(*) FROM saved_tree"))
	for sql, says := range map[string]string{
		"UPDATE audit_tree SET hash = sha256('x')":                                    "audit_tree has another hash over these rows",
		"DELETE FROM audit_tree":                                                      "0 hashes of 256 rows each",
		"UPDATE audit_tree SET node = 1":                                              "audit_tree",
		"INSERT INTO audit_tree SELECT topic, partition, 16, 0, hash FROM audit_tree": "audit_tree",
	} {
		audittest.Execute(t, pool, sql)
		rep := ask()
		require.False(t, rep.OK(), sql)
		require.Contains(t, fmt.Sprintf("%+v", rep.Findings), says, sql)
		audittest.Execute(t, pool, "TRUNCATE audit_tree")
		audittest.Execute(t, pool, "INSERT INTO audit_tree SELECT * FROM saved_tree")
	}
	require.Equal(t, Well, ask().Verdict())

	audittest.Execute(t, pool, "UPDATE audit_chains SET edge = set_byte(edge, 3, get_byte(edge, 3) # 1) WHERE topic = 'events' AND partition = 0")
	rep := ask()
	require.Contains(t, fmt.Sprintf("%+v", rep.Findings), "the column edge of audit_chains")
	r = rig.New(t, pool)
	r.Record(r.Own("events", 0).Events(t, audittest.NewStory("after").Accepted()))
	g.Seal()
	rep = ask()
	require.Contains(t, fmt.Sprintf("%+v", rep.Findings), "the tree was changed before it was signed")
}

// The recorder gets a new key: its log is another one, the old one stays as it was cosigned.
func TestAWitnessAndANewKey(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r, o := witnessed(t, pool)
	g.Flush()
	g.Resign()
	next := rig.NewSigning(t, pool)
	o.stop()
	o.cfg.Logs = append(o.cfg.Logs, logKeyOf(t, next))
	o.start()
	next.Witnesses = []witness.Remote{o.remote}
	next.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("rotated").Accepted()))
	next.Seal()
	next.Cosign()
	c := NewCheckpoints(append(g.Keys(), next.Keys()...))
	c.TrustWitnesses(1, o.client.Verifier())
	for _, s := range []*rig.Signing{g, next} {
		signed, err := o.client.Newest(t.Context(), audit.DefaultOrigin(s.Keys()[0]))
		require.NoError(t, err)
		c.Asked(o.client.Verifier(), audit.KeyID(s.Keys()[0]), signed, nil)
		require.NoError(t, c.Read(s.Dir, FromDirectory))
	}
	rep := verify(t, pool, Options{LogOnly: true, Checkpoints: c})
	require.Equal(t, Well, rep.Verdict(), "%+v %+v", rep.Findings, rep.Gaps)
	require.Len(t, rep.Signers, 2)
}

// Copies are files of their own, in a directory where nothing is ever replaced.
func TestCheckpointsAreCopied(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	g, r, o := witnessed(t, pool)
	worm := filepath.Join(t.TempDir(), "worm")
	g.Copies = []string{worm}
	g.Witnesses = []witness.Remote{o.remote}
	g.Restart()
	r.Record(r.Owned("events", 0).Events(t, audittest.NewStory("copied").Accepted()))
	g.Seal()
	g.Cosign()
	files, err := filepath.Glob(filepath.Join(worm, "*", "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 2, "the checkpoint and its cosignature: %v", files)
	c := NewCheckpoints(g.Keys())
	require.NoError(t, c.Read(worm, FromCopy))
	rep := verify(t, pool, Options{LogOnly: true, Checkpoints: c})
	require.Equal(t, Well, rep.Verdict(), "%+v %+v", rep.Findings, rep.Gaps)
}
