package files

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/clock"
)

// Writer writes a new file. Call [Writer.Commit] or [Writer.Abort] at the end.
type Writer struct {
	File File

	store  *Store
	w      content
	sum    hash.Hash
	closed bool
}

// Create begins a file of a tenant. Other fields of f may be set until Commit.
func (s *Store) Create(ctx context.Context, f File) (*Writer, error) {
	b, err := s.open()
	if err != nil {
		return nil, err
	}
	f.ID, f.CreatedAt = NewID("file-"), clock.Now().UTC().Truncate(time.Microsecond)
	// The row first: without it, the content of a process that dies would stay for good.
	_, err = s.pool.Exec(ctx, `INSERT INTO files (file_id, tenant, purpose, filename, state, job_id, created_at) VALUES ($1, $2, $3, $4, 'WRITING', nullif($5, ''), $6)`,
		f.ID, f.Tenant, f.Purpose, f.Name, f.JobID, f.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("creating file %s: %w", f.ID, err)
	}
	w, err := b.create(ctx, f.ID)
	if err != nil {
		return nil, fmt.Errorf("creating file %s: %w: %w", f.ID, ErrStore, err)
	}
	return &Writer{File: f, store: s, w: w, sum: sha256.New()}, nil
}

// Write writes content.
func (w *Writer) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	_, _ = w.sum.Write(b[:n]) // a hash takes everything
	w.File.Bytes += int64(n)
	if err != nil {
		return n, fmt.Errorf("writing file %s: %w: %w", w.File.ID, ErrStore, err)
	}
	return n, nil
}

// Finish completes the content. The file stays invisible until Commit.
func (w *Writer) Finish() error {
	if w.closed {
		return nil
	}
	w.closed = true
	if err := w.w.commit(); err != nil {
		return fmt.Errorf("writing file %s: %w: %w", w.File.ID, ErrStore, err)
	}
	w.File.SHA256 = w.sum.Sum(nil)
	return nil
}

// DB is a pool, or a transaction.
type DB interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Commit completes the file and makes it visible; with a transaction as db, once that is committed.
func (w *Writer) Commit(ctx context.Context, db DB) error {
	if err := w.Finish(); err != nil {
		return err
	}
	if db == nil {
		db = w.store.pool
	}
	f := &w.File
	err := db.QueryRow(ctx, `UPDATE files SET purpose = $2, filename = $3, bytes = $4, sha256 = $5, expires_at = $6, state = 'STORED' WHERE file_id = $1 AND state = 'WRITING' RETURNING file_id`,
		f.ID, f.Purpose, f.Name, f.Bytes, f.SHA256, f.ExpiresAt).Scan(&f.ID)
	if err != nil {
		return fmt.Errorf("storing file %s: %w", f.ID, err)
	}
	return nil
}

// Abort gives the file up, unless it was committed. What it cannot remove now, Clean removes.
func (w *Writer) Abort(ctx context.Context) {
	if !w.closed {
		w.closed = true
		w.w.abort()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var id string
	if w.store.pool.QueryRow(ctx, `UPDATE files SET state = 'DELETED' WHERE file_id = $1 AND state = 'WRITING' RETURNING file_id`, w.File.ID).Scan(&id) == nil {
		_ = w.store.remove(ctx, id)
	}
}

// remove removes the content of a file, if there is any, and then its row.
func (s *Store) remove(ctx context.Context, id string) error {
	b, err := s.open()
	if err != nil {
		return err
	}
	if err := b.remove(ctx, id); err != nil {
		return fmt.Errorf("removing the content of file %s: %w: %w", id, ErrStore, err)
	}
	if _, err := s.pool.Exec(ctx, `DELETE FROM files WHERE file_id = $1`, id); err != nil {
		return fmt.Errorf("removing file %s: %w", id, err)
	}
	return nil
}
