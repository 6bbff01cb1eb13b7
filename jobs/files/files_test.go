package files

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func store(t *testing.T) *Store {
	t.Helper()
	return New(Config{URL: filepath.Join(t.TempDir(), "files")}, audittest.NewPool(t))
}

// write stores a file of the tenant acme.
func write(t *testing.T, s *Store, text string) *File {
	t.Helper()
	w, err := s.Create(t.Context(), File{Tenant: "acme", Purpose: Batch, Name: "in.jsonl"})
	require.NoError(t, err)
	_, err = io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context(), nil))
	w.Abort(t.Context()) // after a commit it does nothing
	return &w.File
}

func entries(t *testing.T, s *Store) (names []string) {
	t.Helper()
	list, err := os.ReadDir(s.cfg.URL)
	require.NoError(t, err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestFileIsThereOnceItIsComplete(t *testing.T) {
	t.Parallel()
	s := store(t)
	w, err := s.Create(t.Context(), File{Tenant: "acme", Purpose: Batch, Name: "in.jsonl"})
	require.NoError(t, err)
	_, err = io.WriteString(w, "half")
	require.NoError(t, err)
	_, err = s.Get(t.Context(), "acme", w.File.ID)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = s.Read(t.Context(), w.File.ID)
	require.ErrorIs(t, err, ErrStore)
	w.Abort(t.Context())
	require.Empty(t, entries(t, s), "nothing is left of it")

	f := write(t, s, "hello")
	got, err := s.Get(t.Context(), "acme", f.ID)
	require.NoError(t, err)
	sum := sha256.Sum256([]byte("hello"))
	require.EqualValues(t, 5, got.Bytes)
	require.Equal(t, sum[:], got.SHA256)
	r, err := s.Read(t.Context(), f.ID)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, "hello", string(b))
	_, err = s.Get(t.Context(), "other", f.ID)
	require.ErrorIs(t, err, ErrNotFound, "it is another tenant's")
	require.ErrorIs(t, s.Delete(t.Context(), "other", f.ID), ErrNotFound)
}

func TestPagesOfFiles(t *testing.T) {
	t.Parallel()
	s := store(t)
	var ids []string
	for range 5 {
		ids = append(ids, write(t, s, "x").ID)
	}
	_, err := s.pool.Exec(t.Context(), "UPDATE files SET created_at = date_trunc('second', created_at)") // many have the same time
	require.NoError(t, err)
	pages := func(f Filter) (got []string) {
		f.Tenant, f.Limit = "acme", 2
		for {
			page, more, err := s.List(t.Context(), f)
			require.NoError(t, err)
			require.NotEmpty(t, page)
			for _, one := range page {
				got = append(got, one.ID)
			}
			if !more {
				return got
			}
			f.After = got[len(got)-1]
		}
	}
	require.ElementsMatch(t, ids, pages(Filter{}))
	require.ElementsMatch(t, ids, pages(Filter{Order: Oldest, Purpose: Batch}))
	page, more, err := s.List(t.Context(), Filter{Tenant: "acme", Purpose: BatchOutput, Limit: 2})
	require.NoError(t, err)
	require.False(t, more)
	require.Empty(t, page)
	_, _, err = s.List(t.Context(), Filter{Tenant: "other", After: ids[0], Limit: 2})
	require.ErrorIs(t, err, ErrNotFound)
}

// What was deleted or has expired is removed, but not while a job needs it, and so is what a process that died was writing.
func TestContentIsRemoved(t *testing.T) {
	t.Parallel()
	s := store(t)
	kept, deleted, needed, expired := write(t, s, "k"), write(t, s, "d"), write(t, s, "n"), write(t, s, "e")
	dead, err := s.Create(t.Context(), File{Tenant: "acme", Purpose: Batch, Name: "x"})
	require.NoError(t, err)
	exec := func(sql string, args ...any) {
		_, err := s.pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	exec(`UPDATE files SET expires_at = now() - interval '1 second' WHERE file_id = $1`, expired.ID)
	exec(`INSERT INTO file_jobs (tenant, job_id, status, endpoint, input_file_id, completion_window, output_ttl, skip_bad_lines, request, requested_by, source_addr, user_agent, created_at, expires_at, next_at)
		VALUES ('acme', 'b', 'in_progress', '/v1/embeddings', $1, '24h', 3600, false, sha256(''), '', '', '', now(), now(), now())`, needed.ID)
	_, err = s.Get(t.Context(), "acme", expired.ID)
	require.ErrorIs(t, err, ErrNotFound)
	for _, f := range []*File{deleted, needed} {
		require.NoError(t, s.Delete(t.Context(), "acme", f.ID))
		require.ErrorIs(t, s.Delete(t.Context(), "acme", f.ID), ErrNotFound)
	}
	require.NoError(t, s.Clean(t.Context()))
	require.ElementsMatch(t, []string{kept.ID, needed.ID, dead.File.ID + ".part"}, entries(t, s))
	exec(`UPDATE file_jobs SET status = 'completed'`)
	exec(`UPDATE files SET created_at = $1 WHERE state = 'WRITING'`, time.Now().Add(-25*time.Hour))
	require.NoError(t, s.Clean(t.Context()))
	require.Equal(t, []string{kept.ID}, entries(t, s))
	require.NoError(t, s.Close())
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"batchyard-files", "/var/lib/files", "file:///var/lib/files"} {
		require.NoError(t, Config{URL: good}.Check(), good)
	}
	for _, bad := range []string{"s3://bucket", "file://host/dir", "http://x/y"} {
		require.Error(t, Config{URL: bad}.Check(), bad)
	}
}
