// Package sealer signs where the hash chains of the audit log end. It writes checkpoints, which
// package audit specifies, to a file and to a topic. One of all recorders does so at a time; a
// checkpoint that could not be written to the topic is sent there later.
package sealer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
)

const (
	// idleCheckpoint is how often one is written while nothing is recorded, as evidence that later
	// ones were not removed.
	idleCheckpoint = time.Hour
	// searchBack is how many records of the topic are searched for the signer's last checkpoint;
	// other signers may have written since.
	searchBack = 1000
	// maxRepublished bounds the lines of the file that are sent to the topic later.
	maxRepublished = 100
	// sealTimeout bounds one round, and lastSealTimeout the last one, when the process stops.
	sealTimeout     = 30 * time.Second
	lastSealTimeout = 3 * time.Second
)

// Config says how often to sign, with what, and where to.
type Config struct {
	Interval time.Duration
	Dir      string // of the file of checkpoints
	KeyFile  string // of the signing key; empty: signing.key in Dir, which is created if it does not exist
}

// Deps is what a sealer works with.
type Deps struct {
	Log     *stream.Client
	Outbox  *stream.Outbox
	Pool    *pgxpool.Pool
	Logger  *slog.Logger
	Metrics *metrics.Audit
	// Instance is the name of this process in the audit log.
	Instance string
}

// Sealer writes signed checkpoints of the audit log. One of all recorders does at a time.
//
//	waiting ──lock──▶ on duty: find the last checkpoint (file, topic); then repeat:
//	   ▲                 read audit_chains ──▶ sign ──▶ file, fsync ──▶ topic
//	   └─ connection lost ─┘
//
// If the process dies after the file and before the topic, a successor with the same key but
// another directory may use the number again. Both checkpoints are true, so that does no harm. A
// successor with the same directory first sends to the topic what it lacks.
type Sealer struct {
	cfg Config
	Deps
	key    ed25519.PrivateKey // nil: none, and nothing is written
	signer string
	dir    string                  // empty: it is not writable, and checkpoints go to the topic only
	conn   *pgx.Conn               // holds the lock; nil: not on duty
	last   *audit.SignedCheckpoint // of this signer; nil: none
}

// New returns a sealer. It reads the signing key, or creates it. Problems are logged and do
// not stop the recorder: without a key no checkpoints are written, and without a directory they
// go to the topic only.
func New(cfg Config, deps Deps) *Sealer {
	s := &Sealer{cfg: cfg, Deps: deps, dir: cfg.Dir}
	err := os.MkdirAll(s.dir, 0o750)
	if err == nil {
		err = checkWritable(s.dir)
	}
	if err != nil {
		s.Logger.Warn("the directory of checkpoints is not writable: they go to the topic checkpoints only; set audit.checkpoint_dir", "dir", s.dir, "error", err)
		s.dir = ""
	}
	path := cfg.KeyFile
	if path == "" {
		path = filepath.Join(cfg.Dir, audit.SigningKeyFile)
	}
	if s.key, err = audit.LoadSigningKey(path); err != nil {
		s.Logger.Warn("no checkpoints of the audit log are written, because there is no key to sign them with; set audit.signing_key_file", "error", err)
		return s
	}
	s.signer = audit.KeyID(s.publicKey())
	if s.dir != "" {
		if err := audit.WritePublicKey(filepath.Join(s.dir, audit.PublicKeyFile), s.publicKey()); err != nil {
			s.Logger.Warn("the public key of checkpoints could not be written beside them", "error", err)
		}
	}
	return s
}

// Key returns the signing key, or nil without one.
func (s *Sealer) Key() ed25519.PrivateKey { return s.key }

func (s *Sealer) publicKey() ed25519.PublicKey {
	return s.key.Public().(ed25519.PublicKey) //nolint:errcheck // Ed25519 keys have no other
}

// checkWritable tries to create a file in a directory.
func checkWritable(dir string) error {
	f, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Run writes checkpoints at intervals until ctx ends, and then one more.
func (s *Sealer) Run(ctx context.Context) {
	defer s.Resign()
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.round(ctx, sealTimeout)
		case <-ctx.Done():
			s.round(context.WithoutCancel(ctx), lastSealTimeout)
			return
		}
	}
}

// Seal writes a checkpoint now, if this process is on duty or can go on duty, and something has
// changed since the last one.
func (s *Sealer) Seal(ctx context.Context) { s.round(ctx, sealTimeout) }

func (s *Sealer) round(ctx context.Context, timeout time.Duration) {
	if s.key == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	mine, err := s.onDuty(ctx)
	if err == nil && mine {
		err = s.write(ctx)
	}
	if err == nil {
		return
	}
	s.Resign() // another process may do better; and going on duty may have stopped halfway
	if errors.Is(err, context.Canceled) {
		return
	}
	s.Metrics.Checkpoints.WithLabelValues("failed").Inc()
	s.Logger.Warn("writing a checkpoint of the audit log failed; trying again later", "error", pg.Describe(err), "again_in", s.cfg.Interval)
}

// Resign ends the duty, so that another process can go on duty.
func (s *Sealer) Resign() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = s.conn.Exec(ctx, "SELECT pg_advisory_unlock_all()") // else the lock goes with the connection
	_ = s.conn.Close(ctx)
	s.conn = nil
}

// onDuty reports whether this process writes checkpoints, and goes on duty if no other does. Its
// own connection holds the lock for as long as it lives.
func (s *Sealer) onDuty(ctx context.Context) (bool, error) {
	if s.conn != nil {
		return true, nil
	}
	conn, err := pgx.ConnectConfig(ctx, s.Pool.Config().ConnConfig)
	if err != nil {
		return false, fmt.Errorf("connecting to Postgres: %w", err)
	}
	s.conn = conn
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", pg.SealerLock).Scan(&mine); err != nil {
		return false, fmt.Errorf("taking the lock of checkpoints: %w", err)
	}
	if !mine {
		s.Resign()
		return false, nil
	}
	if err := s.findLast(ctx); err != nil {
		return false, err
	}
	if err := s.stateSchema(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// stateSchema signs what the schema is, if the last such statement says something else: the database
// was migrated, or Postgres was upgraded. The first one is made here, too, before the first checkpoint.
func (s *Sealer) stateSchema(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		last, err := statements.LastSchema(ctx, tx)
		if err != nil {
			return err
		}
		now := &audit.SchemaVersion{}
		if now.Version, err = migrations.Version(ctx, tx); err != nil {
			return err
		}
		var schema string
		if err := tx.QueryRow(ctx, "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass").Scan(&schema); err != nil {
			return fmt.Errorf("looking for the schema of audit_log: %w", err)
		}
		all, server, err := migrations.ReadDefinitions(ctx, tx, schema)
		if err != nil {
			return err
		}
		if now.Server = server; last != nil && last.Version == now.Version && last.Server == now.Server {
			return nil
		}
		now.Definitions = all.Digest()
		statement := &audit.Statement{Kind: audit.SchemaSeen, ActorID: s.Instance, Schema: now}
		if last == nil && !s.signedStatements() {
			if statement.Dropped, err = statements.Adopted(ctx, tx); err != nil {
				return err
			}
		}
		return statements.Append(ctx, tx, s.key, statement)
	})
}

// signedStatements reports whether the last checkpoint has statements. If they are gone, someone removed
// them, and what audit_dropped says must not be covered by a new one.
func (s *Sealer) signedStatements() bool {
	return s.last != nil && slices.ContainsFunc(s.last.Chains, func(c audit.CheckpointChain) bool { return c.Topic == audit.StatementsChain.Topic })
}

// findLast finds the signer's last checkpoint, in the file and in the topic: another process with
// the same key may have written since. It sends to the topic what only the file has.
func (s *Sealer) findLast(ctx context.Context) error {
	s.last = nil
	var tail []byte
	if s.dir != "" {
		var torn int
		var err error
		tail, torn, err = lastLines(filepath.Join(s.dir, audit.CheckpointFile))
		if err != nil {
			s.Logger.Warn("the file of checkpoints cannot be read: they go to the topic only", "error", err)
			s.dir = ""
		}
		if torn > 0 {
			s.Logger.Warn("the last line of the file of checkpoints was incomplete, because its process died; it was cut off", "dir", s.dir, "bytes", torn)
		}
	}
	published, err := s.scanTopic(ctx)
	if err != nil {
		return fmt.Errorf("looking for the last checkpoint: %w", err)
	}
	var missing []stream.Message
	lines := bytes.Split(tail, []byte{'\n'})
	for _, line := range slices.Backward(lines[max(0, len(lines)-maxRepublished):]) {
		sum, ok := s.consider(line)
		if published[sum] {
			break
		}
		if ok {
			missing = append(missing, stream.Message{Topic: stream.Checkpoints, Key: s.signer, Value: line})
		}
	}
	if slices.Reverse(missing); len(missing) > 0 {
		if err := s.Outbox.Put(ctx, stream.Unit{Messages: missing}); err != nil {
			return fmt.Errorf("sending %d checkpoints of the file to the topic: %w", len(missing), err)
		}
	}
	return nil
}

// scanTopic considers the last checkpoints in the topic and returns the hashes of the signer's.
func (s *Sealer) scanTopic(ctx context.Context) (map[audit.Hash]bool, error) {
	published := map[audit.Hash]bool{}
	standings, err := s.Log.Offsets(ctx, "", stream.Checkpoints)
	if err != nil {
		return nil, err
	}
	for _, p := range standings {
		err := s.Log.ScanRange(ctx, stream.Checkpoints, p.Partition, max(p.First, p.End-searchBack), p.End, func(r *stream.Record) error {
			if sum, ok := s.consider(r.Value); ok {
				published[sum] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return published, nil
}

// consider takes a line as the last checkpoint if it is later than that. ok is false if it is not
// a checkpoint of this signer.
func (s *Sealer) consider(line []byte) (sum audit.Hash, ok bool) {
	c, err := audit.ParseCheckpoint(line)
	if err != nil || c.Signer != s.signer || !c.SignedBy(s.publicKey()) {
		return sum, false
	}
	if s.last == nil || c.Number > s.last.Number {
		s.last = c
	}
	return c.Hash, true
}

// write writes a checkpoint, unless nothing has changed since the last one.
func (s *Sealer) write(ctx context.Context) error {
	chains, err := s.readEnds(ctx)
	if err != nil {
		return fmt.Errorf("reading the ends of the chains: %w", err)
	}
	c := audit.Checkpoint{Version: audit.CheckpointVersion, Number: 1, Signer: s.signer, Chains: chains}
	c.Time = time.Now().UTC().Truncate(time.Millisecond)
	if s.last != nil {
		if age := c.Time.Sub(s.last.Time); age >= 0 && age < idleCheckpoint && slices.Equal(s.last.Chains, c.Chains) {
			s.Metrics.Checkpoints.WithLabelValues("unchanged").Inc()
			return nil
		}
		c.Number, c.Prev = s.last.Number+1, hex.EncodeToString(s.last.Hash[:])
	} else if len(c.Chains) == 0 {
		return nil // nothing is recorded yet
	}
	line, err := c.Sign(s.key)
	if err != nil {
		return err
	}
	parsed, err := audit.ParseCheckpoint(line)
	if err != nil {
		return fmt.Errorf("reading the checkpoint that was just signed: %w", err)
	}
	outcome := "ok"
	if s.dir != "" {
		if err := appendLine(s.dir, line, c.Number); err != nil {
			outcome = "file_failed"
			s.Logger.Warn("a checkpoint could not be written to its file and goes to the topic only", "dir", s.dir, "number", c.Number, "error", err)
		}
	}
	s.last = parsed
	if err := s.Outbox.Put(ctx, stream.Unit{Messages: []stream.Message{{Topic: stream.Checkpoints, Key: s.signer, Value: line}}}); err != nil {
		return fmt.Errorf("writing checkpoint %d to the topic: %w", c.Number, err)
	}
	s.Metrics.Checkpoints.WithLabelValues(outcome).Inc()
	s.Metrics.CheckpointTime.Set(float64(c.Time.Unix()))
	return nil
}

// readEnds reads the ends of all chains, and of the chain of statements, in one snapshot.
func (s *Sealer) readEnds(ctx context.Context) (chains []audit.CheckpointChain, err error) {
	return chains, pgx.BeginTxFunc(ctx, s.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT topic, partition, rows, hash FROM audit_chains ORDER BY topic, partition")
		if err != nil {
			return err
		}
		chains, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e audit.CheckpointChain, err error) {
			var sum []byte
			err = row.Scan(&e.Topic, &e.Partition, &e.Rows, &sum)
			e.Hash = hex.EncodeToString(sum)
			return e, err
		})
		if err != nil || len(chains) == 0 {
			return err
		}
		end, err := statements.End(ctx, tx)
		if err != nil {
			return err
		}
		if at := audit.StatementsChain; end.Rows > 0 {
			chains = append(chains, audit.CheckpointChain{Topic: at.Topic, Partition: at.Partition, Rows: end.Rows, Hash: hex.EncodeToString(end.Hash[:])})
		}
		return nil
	})
}
