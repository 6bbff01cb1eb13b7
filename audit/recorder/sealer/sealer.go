// Package sealer signs where the hash chains of the audit log end. It writes checkpoints, which
// package audit specifies, to a file and to a topic, and has them cosigned by witnesses. One of all
// recorders does so at a time; a checkpoint that could not be written to the topic is sent there later.
package sealer

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/audit/witness"
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
	Interval  time.Duration
	Dir       string // of the file of checkpoints
	KeyFile   string // of the signing key; empty: signing.key in Dir, which is created if it does not exist
	Origin    string // name of the log of checkpoints; empty: [audit.DefaultOrigin]
	Copies    []string
	Witnesses []witness.Remote
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
//	waiting ──lock──▶ on duty: find the last checkpoint (database, file, topic); then repeat:
//	   ▲                 read audit_chains ──▶ sign ──▶ audit_checkpoints ──▶ file, copies, fsync ──▶ topic
//	   └─ connection lost ─┘                                                      │
//	                                        witnesses ◀── the newest, when it is ─┘ kept ──▶ cosigned: file, topic
//
// A number must not be signed twice, for different checkpoints: witnesses would take that for another
// history, and never cosign again. So a checkpoint is in the database before anyone else sees it, and
// goes to the witnesses only once the file or the topic has it, too. If the process dies in between, its
// successor finds it in the database, and sends it to the topic. If Postgres has lost it, as after a failover, the file or the
// topic has it. What was not witnessed and is in none of them, no one has seen.
type Sealer struct {
	cfg Config
	Deps
	key      ed25519.PrivateKey // nil: none, and nothing is written
	signer   string
	origin   string
	dir      string                  // empty: it is not writable, and checkpoints go to the topic only
	conn     *pgx.Conn               // holds the lock; nil: not on duty
	last     *audit.SignedCheckpoint // of this signer; nil: none
	log      audit.Edge              // the checkpoints of this signer, up to the last
	cosigner *cosigner
	writing  sync.Mutex // of the file
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
	s.origin = cmp.Or(cfg.Origin, audit.DefaultOrigin(s.publicKey()))
	text, err := audit.LogKey(s.origin, s.publicKey())
	if err != nil {
		s.Logger.Error("audit.checkpoint_origin is not used", "error", err)
		s.origin = audit.DefaultOrigin(s.publicKey())
		text, _ = audit.LogKey(s.origin, s.publicKey()) // hexadecimal digits: it cannot fail
	}
	if s.dir != "" {
		err := errors.Join(audit.WritePublicKey(filepath.Join(s.dir, audit.PublicKeyFile), s.publicKey()),
			os.WriteFile(filepath.Join(s.dir, audit.LogKeyFile), []byte(text+"\n"), 0o644)) //nolint:gosec // it is public
		if err != nil {
			s.Logger.Warn("the public key of checkpoints could not be written beside them", "error", err)
		}
	}
	s.cosigner = newCosigner(s)
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

// Run writes checkpoints at intervals until ctx ends, and then one more. Witnesses are asked meanwhile.
func (s *Sealer) Run(ctx context.Context) {
	defer s.Resign()
	var asking sync.WaitGroup
	asked, stop := context.WithCancel(ctx)
	defer stop()
	asking.Go(func() { s.cosigner.run(asked) })
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.round(ctx, sealTimeout)
		case <-ctx.Done():
			s.round(context.WithoutCancel(ctx), lastSealTimeout)
			asking.Wait()
			s.Cosign(context.WithoutCancel(ctx))
			s.cosigner.close()
			return
		}
	}
}

// Cosign asks the witnesses once, without trying again.
func (s *Sealer) Cosign(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastSealTimeout)
	defer cancel()
	s.cosigner.once(ctx)
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

// write writes a checkpoint, unless nothing has changed since the last one.
func (s *Sealer) write(ctx context.Context) error {
	chains, err := s.readEnds(ctx)
	if err != nil {
		return fmt.Errorf("reading the ends of the chains: %w", err)
	}
	c := audit.Checkpoint{Version: audit.CheckpointVersion, Number: s.log.Size + 1, Origin: s.origin, Signer: s.signer, Chains: chains}
	c.Time = time.Now().UTC().Truncate(time.Millisecond)
	if s.last != nil {
		if age := c.Time.Sub(s.last.Time); age >= 0 && age < idleCheckpoint && slices.Equal(s.last.Chains, c.Chains) {
			s.Metrics.Checkpoints.WithLabelValues("unchanged").Inc()
			return nil
		}
	} else if len(c.Chains) == 0 {
		return nil // nothing is recorded yet
	}
	log := s.log.Clone()
	line, nodes, err := c.Sign(s.key, &log)
	if err != nil {
		return err
	}
	parsed, err := audit.ParseCheckpoint(line)
	if err != nil {
		return fmt.Errorf("reading the checkpoint that was just signed: %w", err)
	}
	if err := s.keep(ctx, s.conn, kept{c.Number, nodes, line}); err != nil {
		return err
	}
	s.last, s.log = parsed, log
	return s.publish(ctx, parsed, line)
}

// publish writes a checkpoint to the file, the copies and the topic, and offers it to the witnesses once
// one of them has it.
func (s *Sealer) publish(ctx context.Context, c *audit.SignedCheckpoint, line []byte) error {
	outcome := "ok"
	if s.dir != "" {
		if err := s.append(line, c.Number); err != nil {
			outcome = "file_failed"
			s.Logger.Warn("a checkpoint could not be written to its file and goes to the topic only", "dir", s.dir, "number", c.Number, "error", err)
		} else {
			s.cosigner.offer(c)
		}
	}
	s.copy(fmt.Sprintf("checkpoint-%.8s-%012d.json", s.signer, c.Number), c.Time, line)
	acked := func(err error) {
		if err == nil {
			s.cosigner.offer(c)
		}
	}
	if err := s.Outbox.Put(ctx, stream.Unit{Messages: []stream.Message{{Topic: stream.Checkpoints, Key: s.signer, Value: line}}, Acked: acked}); err != nil {
		return fmt.Errorf("writing checkpoint %d to the topic: %w", c.Number, err)
	}
	s.Metrics.Checkpoints.WithLabelValues(outcome).Inc()
	s.Metrics.CheckpointTime.Set(float64(c.Time.Unix()))
	return nil
}

// publishCosigned writes the signatures of witnesses to the same places.
func (s *Sealer) publishCosigned(ctx context.Context, c *audit.SignedCheckpoint, signed []byte, witnesses int) error {
	line, err := (&audit.Cosigned{Note: string(signed), Number: c.Number, Signer: s.signer}).Line()
	if err != nil {
		return err
	}
	if s.dir != "" {
		if err := s.append(line, c.Number); err != nil {
			s.Logger.Warn("the signatures of witnesses could not be written to the file of checkpoints and go to the topic only", "dir", s.dir, "number", c.Number, "error", err)
		}
	}
	s.copy(fmt.Sprintf("checkpoint-%.8s-%012d-cosigned-%d.json", s.signer, c.Number, witnesses), c.Time, line)
	if err := s.Outbox.Put(ctx, stream.Unit{Messages: []stream.Message{{Topic: stream.Checkpoints, Key: s.signer, Value: line}}}); err != nil {
		return fmt.Errorf("writing the signatures of witnesses on checkpoint %d to the topic: %w", c.Number, err)
	}
	return nil
}

// readEnds reads the ends of all chains, and of the chain of statements, in one snapshot.
func (s *Sealer) readEnds(ctx context.Context) (chains []audit.CheckpointChain, err error) {
	return chains, pgx.BeginTxFunc(ctx, s.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT topic, partition, rows, hash, edge FROM audit_chains ORDER BY topic, partition")
		if err != nil {
			return err
		}
		chains, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e audit.CheckpointChain, err error) {
			var sum, edge []byte
			if err := row.Scan(&e.Topic, &e.Partition, &e.Rows, &sum, &edge); err != nil {
				return e, err
			}
			tree, err := audit.ParseEdge(e.Rows, edge)
			if err != nil {
				return e, fmt.Errorf("audit_chains has for %s %w: it was changed by hand", e.At(), err)
			}
			root := tree.Root()
			e.Hash, e.Root = hex.EncodeToString(sum), hex.EncodeToString(root[:])
			return e, nil
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
