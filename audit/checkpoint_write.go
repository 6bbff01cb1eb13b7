package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
)

const (
	// checkpointLock lets one recorder at a time write checkpoints.
	checkpointLock = 0x62617463680003
	// checkpointIdle is how often one is written while nothing is recorded: it
	// shows that later ones were not removed.
	checkpointIdle = time.Hour
	// checkpointFileBytes is when a file is set aside and the next one begins.
	checkpointFileBytes = 64 << 20
	// checkpointBack is how far back in the topic the signer's own last one is
	// looked for: others may have written since.
	checkpointBack = 1000
	// checkpointLate is how many lines of the file may be given to the topic later.
	checkpointLate = 100
	// checkpointWait bounds one round, and checkpointLast the last one, when the
	// process is to end.
	checkpointWait = 30 * time.Second
	checkpointLast = 3 * time.Second
)

// sealer writes checkpoints: one of the recorders does at a time.
//
//	waiting ──lock──▶ on duty: find the last one (file, topic), then again and again:
//	   ▲                 read audit_chains ─▶ sign ─▶ file, fsync ─▶ topic
//	   └──connection lost──┘
//
// When the process dies after the file and before the topic, a successor with the
// same key may give the number a second time. Both are true, so no harm is done. One
// that has the file gives the topic first what it lacks: others have only that.
type sealer struct {
	stream *stream.Log
	out    *stream.Outbox
	cfg    Config
	pgcfg  *pgx.ConnConfig
	log    *slog.Logger
	m      *metrics.Audit

	key    ed25519.PrivateKey
	signer string
	dir    string // empty: it cannot be written
	conn   *pgx.Conn
	last   *signedLine // of this signer; nil: none
}

// newSealer reads the key, or makes it. Whatever is wrong with it stops no
// recording: without a key no checkpoints are written, without a directory they
// go to the topic only.
func (r *Recorder) newSealer(out *stream.Outbox) *sealer {
	s := &sealer{stream: r.stream, out: out, cfg: r.cfg, pgcfg: r.pool.Config().ConnConfig, log: r.log, m: &r.m.Audit, dir: r.cfg.CheckpointDir}
	err := os.MkdirAll(s.dir, 0o750)
	if err == nil {
		err = writable(s.dir)
	}
	if err != nil {
		s.log.Warn("the directory of checkpoints cannot be written: they go to the topic checkpoints only; set audit.checkpoint_dir", "dir", s.dir, "error", err)
		s.dir = ""
	}
	path := r.cfg.SigningKeyFile
	if path == "" {
		path = filepath.Join(r.cfg.CheckpointDir, signingKeyFile)
	}
	if s.key, err = loadSigningKey(path); err != nil {
		s.log.Warn("no checkpoints of the audit log are written, because there is no key to sign them with; set audit.signing_key_file", "error", err)
		return s
	}
	public := s.key.Public().(ed25519.PublicKey) //nolint:errcheck // it is
	s.signer = KeyID(public)
	if s.dir != "" {
		if err := writePublicKey(filepath.Join(s.dir, publicKeyFile), public); err != nil {
			s.log.Warn("the public key of checkpoints could not be written beside them", "error", err)
		}
	}
	return s
}

// writable tries to make a file in a directory.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// run writes checkpoints until ctx ends, and one more when it has; ended is
// closed when all that will be recorded is.
func (s *sealer) run(ctx context.Context, ended <-chan struct{}) {
	if s.key == nil {
		return
	}
	defer s.leave()
	tick := time.NewTicker(s.cfg.CheckpointInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.round(ctx, checkpointWait)
		case <-ctx.Done():
			<-ended
			s.round(context.WithoutCancel(ctx), checkpointLast)
			return
		}
	}
}

// round writes one checkpoint if it is this process's turn.
func (s *sealer) round(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	mine, err := s.onDuty(ctx)
	if err == nil && mine {
		err = s.write(ctx)
	}
	if err == nil {
		return
	}
	s.leave() // somebody else may do better; and half of taking over is none
	if errors.Is(err, context.Canceled) {
		return
	}
	s.m.Checkpoints.WithLabelValues("failed").Inc()
	s.log.Warn("writing a checkpoint of the audit log; trying again later", "error", describe(err), "again_in", s.cfg.CheckpointInterval)
}

// leave ends the duty: the lock is given back, or goes with the connection.
func (s *sealer) leave() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = s.conn.Exec(ctx, "SELECT pg_advisory_unlock_all()")
	_ = s.conn.Close(ctx)
	s.conn = nil
}

// onDuty reports whether this process is the one that writes. The lock is held
// by a connection of its own for as long as that lives.
func (s *sealer) onDuty(ctx context.Context) (bool, error) {
	if s.conn != nil {
		return true, nil
	}
	conn, err := pgx.ConnectConfig(ctx, s.pgcfg)
	if err != nil {
		return false, fmt.Errorf("connecting to Postgres: %w", err)
	}
	s.conn = conn
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(checkpointLock)).Scan(&mine); err != nil {
		return false, fmt.Errorf("asking for the lock of checkpoints: %w", err)
	}
	if !mine {
		s.leave()
		return false, nil
	}
	if err := s.findLast(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// findLast finds the signer's last checkpoint, in the file or in the topic: with
// the same key another process may have written since.
func (s *sealer) findLast(ctx context.Context) error {
	s.last = nil
	public := s.key.Public().(ed25519.PublicKey) //nolint:errcheck // it is
	take := func(line []byte) (of hash, ok bool) {
		c, err := parseCheckpoint(line)
		if err != nil || c.Signer != s.signer || !c.by(public) {
			return of, false
		}
		if s.last == nil || c.Number > s.last.Number {
			s.last = c
		}
		return c.hash, true
	}
	var tail []byte
	if s.dir != "" {
		var torn int
		var err error
		tail, torn, err = lastLines(filepath.Join(s.dir, checkpointFile))
		if err != nil {
			s.log.Warn("the file of checkpoints cannot be read: they go to the topic only", "error", err)
			s.dir = ""
		}
		if torn > 0 {
			s.log.Warn("the last line of the file of checkpoints was not finished when its process died; it was cut off", "dir", s.dir, "bytes", torn)
		}
	}
	told := map[hash]bool{}
	standings, err := s.stream.Standings(ctx, "", stream.Checkpoints)
	if err != nil {
		return fmt.Errorf("looking for the last checkpoint: %w", err)
	}
	for _, p := range standings {
		err := s.stream.ScanRange(ctx, stream.Checkpoints, p.Partition, max(p.First, p.End-checkpointBack), p.End, func(r *stream.Record) error {
			if of, ok := take(r.Value); ok {
				told[of] = true
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("looking for the last checkpoint: %w", err)
		}
	}
	var late []stream.Message
	lines := bytes.Split(tail, []byte{'\n'})
	for _, line := range slices.Backward(lines[max(0, len(lines)-checkpointLate):]) {
		of, ok := take(line)
		if told[of] {
			break
		}
		if ok {
			late = append(late, stream.Message{Topic: stream.Checkpoints, Key: s.signer, Value: line})
		}
	}
	if slices.Reverse(late); len(late) > 0 {
		if err := s.out.Put(ctx, stream.Unit{Messages: late}); err != nil {
			return fmt.Errorf("giving the topic %d checkpoints of the file: %w", len(late), err)
		}
	}
	return nil
}

// write reads where the chains end, in one snapshot, and writes a checkpoint
// unless nothing has changed.
func (s *sealer) write(ctx context.Context) error {
	c := checkpoint{Version: checkpointVersion, Number: 1, Signer: s.signer, Chains: []checkpointEnd{}}
	rows, err := s.conn.Query(ctx, "SELECT topic, partition, rows, hash FROM audit_chains ORDER BY topic, partition")
	if err != nil {
		return fmt.Errorf("reading where the chains end: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e checkpointEnd
		var sum []byte
		if err := rows.Scan(&e.Topic, &e.Partition, &e.Rows, &sum); err != nil {
			return fmt.Errorf("reading where the chains end: %w", err)
		}
		e.Hash = hex.EncodeToString(sum)
		c.Chains = append(c.Chains, e)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading where the chains end: %w", err)
	}
	c.Time = time.Now().UTC().Truncate(time.Millisecond)
	if s.last != nil {
		if age := c.Time.Sub(s.last.Time); age >= 0 && age < checkpointIdle && slices.Equal(s.last.Chains, c.Chains) {
			s.m.Checkpoints.WithLabelValues("unchanged").Inc()
			return nil
		}
		c.Number, c.Prev = s.last.Number+1, hex.EncodeToString(s.last.hash[:])
	} else if len(c.Chains) == 0 {
		return nil // there is nothing to be told yet
	}
	line, err := c.sign(s.key)
	if err != nil {
		return err
	}
	parsed, err := parseCheckpoint(line)
	if err != nil {
		return fmt.Errorf("reading the checkpoint that was just made: %w", err)
	}
	outcome := "ok"
	if s.dir != "" {
		if err := appendLine(s.dir, line, c.Number); err != nil {
			outcome = "file_failed"
			s.log.Warn("a checkpoint could not be written to its file and goes to the topic only", "dir", s.dir, "number", c.Number, "error", err)
		}
	}
	s.last = parsed
	if err := s.out.Put(ctx, stream.Unit{Messages: []stream.Message{{Topic: stream.Checkpoints, Key: s.signer, Value: line}}}); err != nil {
		return fmt.Errorf("writing checkpoint %d to the topic: %w", c.Number, err)
	}
	s.m.Checkpoints.WithLabelValues(outcome).Inc()
	s.m.CheckpointTime.Set(float64(c.Time.Unix()))
	return nil
}

// appendLine writes a line to the file of checkpoints, durably. A file that is
// full is set aside first, under the number that the next one begins with.
func appendLine(dir string, line []byte, number int64) error {
	path := filepath.Join(dir, checkpointFile)
	if info, err := os.Stat(path); err == nil && info.Size() > checkpointFileBytes {
		if err := os.Rename(path, filepath.Join(dir, fmt.Sprintf("checkpoints-before-%012d.jsonl", number))); err != nil {
			return fmt.Errorf("setting a full file of checkpoints aside: %w", err)
		}
	}
	if _, _, err := lastLines(path); err != nil { // an earlier try may have left half a line
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(slices.Clip(line), '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d, err := os.Open(dir) // so that the file's name is durable, too
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lastLines returns the last lines of a file without the last one's end, the first
// perhaps not whole; nothing when there is none. What comes after the last line's
// end was being written when its process died: it is cut off, and torn says how
// many bytes that were.
func lastLines(path string) (lines []byte, torn int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	from := max(0, size-2*maxCheckpoint)
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return nil, 0, err
	}
	whole := tail[:bytes.LastIndexByte(tail, '\n')+1]
	if torn = len(tail) - len(whole); torn > 0 {
		if len(whole) == 0 && from > 0 {
			return nil, 0, fmt.Errorf("%s ends in a line of more than %d bytes: it is no file of checkpoints", path, maxCheckpoint)
		}
		if err := errors.Join(f.Truncate(from+int64(len(whole))), f.Sync()); err != nil {
			return nil, 0, err
		}
	}
	return bytes.TrimRight(whole, "\r\n"), torn, nil
}
