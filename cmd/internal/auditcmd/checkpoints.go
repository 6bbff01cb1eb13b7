package auditcmd

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/prove"
	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
)

// checkpointFlags are the flags of commands that read checkpoints.
type checkpointFlags struct {
	checkpoints []string
	keys        []string
	witnesses   []string
	noKafka     bool
}

func (f *checkpointFlags) flags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.checkpoints, "checkpoints", nil, "`file` or directory of a copy of checkpoints; repeatable (in addition to audit.checkpoint_dir)")
	fl.StringArrayVar(&f.keys, "public-key", nil, "PEM `file` of a key to trust; repeatable (default: signing.pub in audit.checkpoint_dir)")
	fl.StringArrayVar(&f.witnesses, "witness", nil, "`key` of a witness to trust, as text; repeatable (in addition to audit.witnesses)")
	fl.BoolVar(&f.noKafka, "no-kafka", false, "do not read the topic checkpoints")
}

// publicKeys reads the keys that are trusted: those of the flags, else signing.pub in the directories.
func publicKeys(files, dirs []string) (keys []ed25519.PublicKey, err error) {
	if len(files) == 0 {
		for _, at := range dirs {
			if public := filepath.Join(at, audit.PublicKeyFile); exists(public) {
				files = append(files, public)
			}
		}
	}
	for _, file := range files {
		more, err := audit.ReadPublicKeys(file)
		if err != nil {
			return nil, cli.WithCode(cli.ExitUsage, err)
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

// witnessKeys returns the witnesses of the configuration and of the flags.
func witnessKeys(remotes []witness.Remote, flags []string) (keys []note.Verifier, clients []*witness.Client, err error) {
	for _, r := range remotes {
		c, err := witness.NewClient(r)
		if err != nil {
			return nil, nil, cli.WithCode(cli.ExitUsage, fmt.Errorf("audit.witnesses: %w", err))
		}
		keys, clients = append(keys, c.Verifier()), append(clients, c)
	}
	for _, text := range flags {
		v, err := audit.WitnessVerifier(text)
		if err != nil {
			return nil, nil, cli.WithCode(cli.ExitUsage, fmt.Errorf("--witness: %w", err))
		}
		if !slices.ContainsFunc(keys, func(k note.Verifier) bool { return k.Name() == v.Name() && k.KeyHash() == v.KeyHash() }) {
			keys = append(keys, v)
		}
	}
	return keys, clients, nil
}

// loadCheckpoints gathers checkpoints and the keys to trust them by.
func loadCheckpoints(ctx context.Context, cfg app.Config, f *checkpointFlags, o *verify.Options) (notes []string, err error) {
	dir := cfg.Audit.CheckpointDir
	keys, err := publicKeys(f.keys, append([]string{dir}, f.checkpoints...))
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		if len(f.checkpoints) > 0 {
			return nil, cli.UsageError("checkpoints prove nothing without a trusted key: name the recorder's signing.pub with --public-key")
		}
		return []string{fmt.Sprintf("checkpoints were not checked: no --public-key, and no %s", filepath.Join(dir, audit.PublicKeyFile))}, nil
	}
	witnesses, clients, err := witnessKeys(cfg.Audit.Witnesses, f.witnesses)
	if err != nil {
		return nil, err
	}
	o.Checkpoints = verify.NewCheckpoints(keys)
	o.Checkpoints.TrustWitnesses(cfg.Audit.WitnessQuorum, witnesses...)
	// Before the checkpoints, which then hold all that a witness has seen.
	askWitnesses(ctx, cfg, clients, keys, o.Checkpoints)
	if exists(dir) {
		if err := o.Checkpoints.Read(dir, verify.FromDirectory); err != nil {
			return nil, cli.WithCode(cli.ExitUsage, err)
		}
	}
	for _, file := range f.checkpoints {
		from := verify.FromCopy
		if within(dir, file) { // who can write to the one can write to the other
			from = verify.FromDirectory
		}
		if err := o.Checkpoints.Read(file, from); err != nil {
			return nil, cli.WithCode(cli.ExitUsage, err)
		}
	}
	if f.noKafka {
		return notes, nil
	}
	return notes, withLog(ctx, cfg, func(log *stream.Client) error { return o.Checkpoints.ReadTopic(ctx, log) })
}

// withLog connects to Kafka and calls fn.
func withLog(ctx context.Context, cfg app.Config, fn func(*stream.Client) error) error {
	log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return fmt.Errorf("%w; --no-kafka skips the topic", cli.ServiceError(err))
	}
	defer func() { _ = log.Close() }()
	if err := fn(log); err != nil {
		return fmt.Errorf("reading the topic checkpoints: %w; --no-kafka skips it", err)
	}
	return nil
}

// askWitnesses asks each witness for the newest checkpoint of each key that it has cosigned: checkpoints after
// the newest that there is were removed. The signatures of one that does not answer count where they are stored.
func askWitnesses(ctx context.Context, cfg app.Config, clients []*witness.Client, keys []ed25519.PublicKey, to *verify.Checkpoints) {
	for _, c := range clients {
		defer c.Close()
		var failed error
		for _, k := range keys {
			origin := cfg.Audit.CheckpointOrigin
			if origin == "" {
				origin = audit.DefaultOrigin(k)
			}
			var signed []byte
			if failed == nil { // else another key would wait as long
				signed, failed = c.Newest(ctx, origin)
			}
			to.Asked(c.Verifier(), audit.KeyID(k), signed, failed)
		}
	}
}

// within reports whether a path is a directory or in it, whatever links lead there.
func within(dir, path string) bool {
	resolve := func(p string) string {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		return p
	}
	rel, err := filepath.Rel(resolve(dir), resolve(path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// Bounds of what is read to find a checkpoint that a proof can lead to: any of the newest does.
const (
	lastBytes   = 16 << 20 // of a file
	lastRecords = 2000     // of a partition
)

// candidates returns the last checkpoints with valid signatures, the best to prove with first: those with enough
// cosignatures, and of these the newest.
func candidates(ctx context.Context, cfg app.Config, f *checkpointFlags) ([]prove.Candidate, error) {
	dir := cfg.Audit.CheckpointDir
	keys, err := publicKeys(f.keys, append([]string{dir}, f.checkpoints...))
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, cli.UsageError("a proof needs a checkpoint, and there is no key to know one by: name the recorder's signing.pub with --public-key")
	}
	witnesses, _, err := witnessKeys(cfg.Audit.Witnesses, f.witnesses)
	if err != nil {
		return nil, err
	}
	g := &gathered{keys: keys, witnesses: witnesses, points: map[string]*audit.SignedCheckpoint{}, signed: map[string]cosigned{}}
	files := f.checkpoints
	if own := filepath.Join(dir, audit.CheckpointFile); exists(own) {
		files = append(files, own)
	}
	for _, file := range files {
		if err := g.readEnd(file); err != nil {
			return nil, cli.WithCode(cli.ExitUsage, fmt.Errorf("reading checkpoints: %w", err))
		}
	}
	if !f.noKafka {
		if err := withLog(ctx, cfg, func(log *stream.Client) error { return g.readTopic(ctx, log) }); err != nil {
			return nil, err
		}
	}
	return g.ranked(cfg.Audit.WitnessQuorum), nil
}

// gathered are checkpoints by their notes' texts.
type gathered struct {
	keys      []ed25519.PublicKey
	witnesses []note.Verifier
	points    map[string]*audit.SignedCheckpoint
	signed    map[string]cosigned
}

type cosigned struct {
	note []byte
	by   int
}

func (g *gathered) add(line []byte) {
	if audit.IsCosigned(line) {
		g.addCosigned(line)
		return
	}
	c, err := audit.ParseCheckpoint(line)
	if err != nil || !slices.ContainsFunc(g.keys, func(k ed25519.PublicKey) bool { return audit.KeyID(k) == c.Signer && c.SignedBy(k) }) {
		return
	}
	g.points[c.TreeHead.Text()] = c
}

func (g *gathered) addCosigned(line []byte) {
	l, head, err := audit.ParseCosigned(line)
	if err != nil || len(g.witnesses) == 0 {
		return
	}
	n, err := note.Open([]byte(l.Note), note.VerifierList(g.witnesses...))
	if err != nil {
		return
	}
	if have := g.signed[head.Text()]; len(n.Sigs) > have.by {
		g.signed[head.Text()] = cosigned{[]byte(l.Note), len(n.Sigs)}
	}
}

// readEnd adds the last lines of a file.
func (g *gathered) readEnd(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, audit.CheckpointFile)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	from := max(0, size-lastBytes)
	b, err := io.ReadAll(io.NewSectionReader(file, from, size-from))
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		g.add([]byte(line))
	}
	return nil
}

// readTopic adds the last records of the topic.
func (g *gathered) readTopic(ctx context.Context, log *stream.Client) error {
	all, err := log.Offsets(ctx, "", stream.Checkpoints)
	if err != nil {
		return err
	}
	for _, p := range all {
		err := log.ScanRange(ctx, stream.Checkpoints, p.Partition, max(p.First, p.End-lastRecords), p.End, func(r *stream.Record) error {
			g.add(r.Value)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *gathered) ranked(quorum int) []prove.Candidate {
	out := make([]prove.Candidate, 0, len(g.points))
	for text, c := range g.points {
		signed := c.Note
		s := g.signed[text]
		if s.by > 0 {
			signed = s.note
		}
		out = append(out, prove.Candidate{SignedCheckpoint: c, Signed: signed})
	}
	witnessed := func(c prove.Candidate) bool {
		s := g.signed[c.TreeHead.Text()]
		return s.by > 0 && s.by >= quorum
	}
	slices.SortFunc(out, func(a, b prove.Candidate) int {
		if witnessed(a) != witnessed(b) {
			if witnessed(a) {
				return -1
			}
			return 1
		}
		return b.Time.Compare(a.Time)
	})
	return out
}
