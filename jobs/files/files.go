// Package files keeps what clients upload, and the output of the jobs made of it: the content in a directory
// that all processes share, and a row for each file in Postgres.
//
//	Create ──▶ WRITING ──▶ Commit ──▶ STORED ──▶ Delete, or expires_at ──▶ DELETED ──▶ Clean: gone
//	              └─ Abort, or a process that died: gone with the next Clean after a day
//
// A file is visible once its content is complete and stored, and never before. Content is written and read
// as a stream, so memory does not depend on its size. The content of a file that a job still needs
// outlives its deletion.
package files

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a file is for.
const (
	Batch       = "batch"        // an input, which a client uploaded
	BatchOutput = "batch_output" // the output of a job, or its errors
)

// ErrNotFound says that the tenant has no such file.
var ErrNotFound = errors.New("there is no such file")

// ErrStore says that the blob store does not answer, or refuses.
var ErrStore = errors.New("the blob store of files.url does not work")

// File is a stored file.
type File struct {
	ID        string
	Tenant    string
	Purpose   string
	Name      string
	Bytes     int64
	SHA256    []byte
	JobID     string // whose output it is
	CreatedAt time.Time
	ExpiresAt *time.Time // nil: never
}

// Store keeps files. It may be used by any goroutine.
type Store struct {
	cfg  Config
	pool *pgxpool.Pool

	mu    sync.Mutex
	blobs blobs // nil until they are first needed
}

// New returns a store. It opens the blob store when it first needs it.
func New(cfg Config, pool *pgxpool.Pool) *Store {
	return &Store{cfg: cfg.WithDefaults(), pool: pool}
}

// Config returns the store's configuration, defaults filled in.
func (s *Store) Config() Config { return s.cfg }

// Close closes the blob store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs == nil {
		return nil
	}
	err := s.blobs.close()
	s.blobs = nil
	return err
}

// Check returns what is wrong with the URL of the configuration.
func (c Config) Check() error {
	if scheme, _, ok := strings.Cut(c.URL, "://"); ok && (scheme != "file" || pathOf(c.URL) == "") {
		return errors.New("files.url: use a directory, or a URL such as file:///var/lib/batchyard/files; a bucket can be mounted as one")
	}
	return nil
}

// pathOf returns the directory that a URL stands for; empty if it names another machine.
func pathOf(raw string) string {
	if !strings.Contains(raw, "://") {
		return raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host != "" && u.Host != "localhost" {
		return ""
	}
	return filepath.FromSlash(u.Path)
}

// open returns the blob store.
func (s *Store) open() (blobs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs != nil {
		return s.blobs, nil
	}
	b, err := openDirectory(pathOf(s.cfg.URL))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	s.blobs = b
	return b, nil
}

// NewID returns a random id with a prefix, such as file-.
func NewID(prefix string) string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // it never fails
	return prefix + hex.EncodeToString(b[:])
}

const columns = `file_id, tenant, purpose, filename, bytes, sha256, coalesce(job_id, ''), created_at, expires_at`

func scan(row pgx.Row) (*File, error) {
	f := &File{}
	err := row.Scan(&f.ID, &f.Tenant, &f.Purpose, &f.Name, &f.Bytes, &f.SHA256, &f.JobID, &f.CreatedAt, &f.ExpiresAt)
	return f, err
}

// visible is the condition for a file that clients see.
const visible = `state = 'STORED' AND (expires_at IS NULL OR expires_at > now())`

// Get returns a file, or [ErrNotFound].
func (s *Store) Get(ctx context.Context, tenant, id string) (*File, error) {
	f, err := scan(s.pool.QueryRow(ctx, `SELECT `+columns+` FROM files WHERE file_id = $1 AND tenant = $2 AND `+visible, id, tenant))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading file %s: %w", id, err)
	}
	return f, nil
}

// Filter selects files. The tenant is required.
type Filter struct {
	Tenant  string
	Purpose string // empty: any
	After   string // id of the last file of the previous page; empty: the first page
	Limit   int
	Order   Order
}

// Order is the order of a list.
type Order string

// The orders, by creation.
const (
	Newest Order = "desc"
	Oldest Order = "asc"
)

// List returns a page of files. more says whether there are others after it. [ErrNotFound] means that the
// tenant has no file with the id After.
func (s *Store) List(ctx context.Context, f Filter) (page []*File, more bool, err error) {
	where, sort := "", "created_at DESC, file_id DESC"
	args := []any{f.Tenant, f.Purpose, f.Limit + 1}
	compare := "<"
	if f.Order == Oldest {
		sort, compare = "created_at, file_id", ">"
	}
	if f.After != "" {
		var at time.Time
		err := s.pool.QueryRow(ctx, `SELECT created_at FROM files WHERE file_id = $1 AND tenant = $2`, f.After, f.Tenant).Scan(&at)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, false, ErrNotFound
		}
		if err != nil {
			return nil, false, fmt.Errorf("listing files: %w", err)
		}
		where = ` AND (created_at, file_id) ` + compare + ` ($4::timestamptz, $5)`
		args = append(args, at, f.After)
	}
	rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM files WHERE tenant = $1 AND $2 IN ('', purpose) AND `+visible+where+` ORDER BY `+sort+` LIMIT $3`, args...)
	if err == nil {
		page, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (*File, error) { return scan(r) })
	}
	if err != nil {
		return nil, false, fmt.Errorf("listing files: %w", err)
	}
	if len(page) > f.Limit {
		return page[:f.Limit], true, nil
	}
	return page, false, nil
}

// Delete deletes a file, or returns [ErrNotFound]. Its content is removed later, and not while a job needs it.
func (s *Store) Delete(ctx context.Context, tenant, id string) error {
	tag, err := s.pool.Exec(ctx, `UPDATE files SET state = 'DELETED' WHERE file_id = $1 AND tenant = $2 AND `+visible, id, tenant)
	if err != nil {
		return fmt.Errorf("deleting file %s: %w", id, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}

// Read reads the content of a file. One that was deleted can be read until its content is removed.
func (s *Store) Read(ctx context.Context, id string) (io.ReadCloser, error) {
	b, err := s.open()
	if err != nil {
		return nil, err
	}
	r, err := b.read(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("reading file %s: %w: %w", id, ErrStore, err)
	}
	return r, nil
}

// cleanSQL selects what has no use any more. A job that has not ended needs its input.
const cleanSQL = `
SELECT file_id FROM files f WHERE (state = 'DELETED' OR state = 'WRITING' AND created_at < now() - interval '1 day' OR expires_at < now())
	AND NOT EXISTS (SELECT FROM file_jobs j WHERE j.input_file_id = f.file_id AND j.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
LIMIT 100`

// Clean removes content that has no use any more, and then its rows. If the process dies in between, the next
// call finds the row and no content, which is fine.
func (s *Store) Clean(ctx context.Context) error {
	rows, err := s.pool.Query(ctx, cleanSQL)
	if err != nil {
		return fmt.Errorf("looking for deleted files: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("looking for deleted files: %w", err)
	}
	for _, id := range ids {
		if err := s.remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
