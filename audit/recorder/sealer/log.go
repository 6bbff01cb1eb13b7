package sealer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/stream"
)

// The log of checkpoints of a signer continues where it ended. Its last checkpoint is the newest of those in the
// database, in the file and in the topic that have a valid signature; it has the right edge of the log, so nothing
// else needs to be read. Table audit_checkpoints also has the hashes inside the log, for proofs to
// witnesses. It need not be trusted: what it has is compared with the signed root, and rebuilt from the
// topic if it differs.

// kept is a checkpoint as audit_checkpoints has it.
type kept struct {
	number int64
	hashes []audit.Hash // of the nodes that it completes
	line   []byte       // nil: it is not one of the last
}

const keepSQL = `INSERT INTO audit_checkpoints (signer, number, hashes, line) VALUES ($1, $2, $3, $4)
ON CONFLICT (signer, number) DO UPDATE SET hashes = excluded.hashes, line = excluded.line`

// forgetSQL takes away the line of the one that is no longer among the last.
const forgetSQL = `UPDATE audit_checkpoints SET line = NULL WHERE signer = $1 AND number = $2`

// keep stores a checkpoint before anyone else sees it.
func (s *Sealer) keep(ctx context.Context, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, k kept) error {
	flat := make([]byte, 0, len(k.hashes)*sha256.Size)
	for _, h := range k.hashes {
		flat = append(flat, h[:]...)
	}
	var line any
	if k.line != nil {
		line = string(k.line)
	}
	if _, err := db.Exec(ctx, keepSQL, s.signer, k.number, flat, line); err != nil {
		return fmt.Errorf("storing checkpoint %d: %w", k.number, err)
	}
	if _, err := db.Exec(ctx, forgetSQL, s.signer, k.number-maxRepublished); err != nil {
		return fmt.Errorf("storing checkpoint %d: %w", k.number, err)
	}
	return nil
}

// nodes reads hashes inside the log of checkpoints.
func (s *Sealer) nodes(ctx context.Context) tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		numbers := make([]int64, len(indexes))
		for i, x := range indexes {
			level, n := tlog.SplitStoredHashIndex(x)
			numbers[i] = (n + 1) << level // of the leaf that completes the node
		}
		rows, err := s.Pool.Query(ctx, "SELECT number, hashes FROM audit_checkpoints WHERE signer = $1 AND number = ANY ($2)", s.signer, numbers)
		if err != nil {
			return nil, fmt.Errorf("reading audit_checkpoints: %w", err)
		}
		of := map[int64][]byte{}
		var number int64
		var hashes []byte
		if _, err := pgx.ForEachRow(rows, []any{&number, &hashes}, func() error {
			of[number] = bytes.Clone(hashes)
			return nil
		}); err != nil {
			return nil, fmt.Errorf("reading audit_checkpoints: %w", err)
		}
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			level, _ := tlog.SplitStoredHashIndex(x)
			b := of[numbers[i]]
			if len(b) < (level+1)*sha256.Size {
				return nil, fmt.Errorf("audit_checkpoints lacks hashes of number %d", numbers[i])
			}
			out[i] = tlog.Hash(b[level*sha256.Size:])
		}
		return out, nil
	}
}

// prove returns the proof that the log with so many checkpoints begins with the first of them.
func (s *Sealer) prove(ctx context.Context, size, old int64) ([]audit.Hash, error) {
	p, err := tlog.ProveTree(size, old, s.nodes(ctx))
	if err != nil {
		return nil, err
	}
	out := make([]audit.Hash, len(p))
	for i, h := range p {
		out[i] = audit.Hash(h)
	}
	return out, nil
}

// findLast finds the signer's last checkpoint in the database, in the file and in the topic: another process
// with the same key may have written since. It sends to the topic, and adds to the file, what they lack.
func (s *Sealer) findLast(ctx context.Context) error {
	s.last, s.log = nil, audit.Edge{}
	stored, err := s.storedLines(ctx)
	if err != nil {
		return err
	}
	inFile := s.fileLines()
	published, err := s.scanTopic(ctx)
	if err != nil {
		return fmt.Errorf("looking for the last checkpoint: %w", err)
	}
	have := map[audit.Hash]bool{}
	var all []*audit.SignedCheckpoint
	lines := map[audit.Hash][]byte{}
	var newestInFile int64
	for i, line := range append(inFile, stored...) {
		c := s.consider(line)
		if c == nil || have[c.Hash] {
			continue
		}
		if i < len(inFile) {
			newestInFile = max(newestInFile, c.Number)
		}
		have[c.Hash], lines[c.Hash] = true, line
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *audit.SignedCheckpoint) int { return cmp.Compare(a.Number, b.Number) })
	var missing []stream.Message
	for _, c := range slices.Backward(all[max(0, len(all)-maxRepublished):]) {
		if published[c.Hash] {
			break
		}
		missing = append(missing, stream.Message{Topic: stream.Checkpoints, Key: s.signer, Value: lines[c.Hash]})
	}
	if slices.Reverse(missing); len(missing) > 0 {
		if err := s.Outbox.Put(ctx, stream.Unit{Messages: missing}); err != nil {
			return fmt.Errorf("sending %d checkpoints to the topic, which lacks them: %w", len(missing), err)
		}
	}
	for _, c := range all {
		if s.dir == "" || c.Number <= newestInFile || len(inFile) == 0 {
			continue
		}
		if err := s.append(lines[c.Hash], c.Number); err != nil {
			s.Logger.Warn("a checkpoint of the database could not be added to the file", "dir", s.dir, "number", c.Number, "error", err)
		}
	}
	if s.last == nil {
		return nil
	}
	s.log = s.last.Log()
	if err := s.compareStored(ctx); err != nil {
		return err
	}
	if published[s.last.Hash] || newestInFile >= s.last.Number {
		s.cosigner.offer(s.last) // its process may have died before witnesses answered
	}
	return nil
}

// storedLines returns the last checkpoints that the database has.
func (s *Sealer) storedLines(ctx context.Context) ([][]byte, error) {
	rows, err := s.conn.Query(ctx, "SELECT line FROM audit_checkpoints WHERE signer = $1 AND line IS NOT NULL ORDER BY number DESC LIMIT $2", s.signer, maxRepublished)
	if err != nil {
		return nil, fmt.Errorf("reading audit_checkpoints: %w", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading audit_checkpoints: %w", err)
	}
	out := make([][]byte, len(lines))
	for i, l := range lines {
		out[i] = []byte(l)
	}
	return out, nil
}

// fileLines returns the last lines of the file.
func (s *Sealer) fileLines() [][]byte {
	if s.dir == "" {
		return nil
	}
	tail, torn, err := lastLines(filepath.Join(s.dir, audit.CheckpointFile))
	if err != nil {
		s.Logger.Warn("the file of checkpoints cannot be read: they go to the topic only", "error", err)
		s.dir = ""
		return nil
	}
	if torn > 0 {
		s.Logger.Warn("the last line of the file of checkpoints was incomplete, because its process died; it was cut off", "dir", s.dir, "bytes", torn)
	}
	if len(tail) == 0 {
		return nil
	}
	return bytes.Split(tail, []byte{'\n'})
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
			if c := s.consider(r.Value); c != nil {
				published[c.Hash] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return published, nil
}

// consider takes a line as the last checkpoint if it is later than that. It returns nil if it is not a
// checkpoint of this signer.
func (s *Sealer) consider(line []byte) *audit.SignedCheckpoint {
	if audit.IsCosigned(line) {
		return nil
	}
	c, err := audit.ParseCheckpoint(line)
	if err != nil || c.Signer != s.signer || !c.SignedBy(s.publicKey()) {
		return nil
	}
	if s.last == nil || c.Number > s.last.Number {
		s.last = c
	}
	return c
}

// compareStored makes sure that audit_checkpoints leads to the root that was signed last. It does not after
// a restore, or after someone changed it: then it is filled again from the topic.
func (s *Sealer) compareStored(ctx context.Context) error {
	var count int64
	if err := s.conn.QueryRow(ctx, "SELECT count(*) FROM audit_checkpoints WHERE signer = $1 AND number BETWEEN 1 AND $2", s.signer, s.last.Number).Scan(&count); err != nil {
		return fmt.Errorf("reading audit_checkpoints: %w", err)
	}
	if count == s.last.Number {
		root, err := tlog.TreeHash(s.last.Number, s.nodes(ctx))
		if err == nil && audit.Hash(root) == s.last.TreeHead.Root {
			return nil
		}
	}
	err := s.fill(ctx)
	if errors.Is(err, errIncomplete) {
		s.Logger.Warn("the topic does not have all checkpoints of this key: witnesses that have not seen the newest will not be convinced that the log only grew", "error", err)
		return nil
	}
	return err
}

var errIncomplete = errors.New("checkpoints are missing")

// fill computes audit_checkpoints from the checkpoints in the topic.
func (s *Sealer) fill(ctx context.Context) error {
	leaves := map[int64]audit.Hash{} // one for a minute of the life of the log
	err := s.Log.Scan(ctx, stream.Checkpoints, func(r *stream.Record) error {
		if c := s.consider(r.Value); c != nil {
			leaves[c.Number] = audit.LeafHash(c.Body)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading all checkpoints: %w", err)
	}
	for _, line := range s.fileLines() {
		if c := s.consider(line); c != nil {
			leaves[c.Number] = audit.LeafHash(c.Body)
		}
	}
	return pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		var log audit.Edge
		for log.Size < s.last.Number {
			leaf, ok := leaves[log.Size+1]
			if !ok {
				return fmt.Errorf("number %d: %w", log.Size+1, errIncomplete)
			}
			nodes := log.Complete(leaf)
			if err := s.keep(ctx, tx, kept{log.Size, nodes, nil}); err != nil {
				return err
			}
		}
		if log.Root() != s.last.TreeHead.Root {
			return fmt.Errorf("those of the topic do not lead to the root that was signed last: %w", errIncomplete)
		}
		return nil
	})
}
