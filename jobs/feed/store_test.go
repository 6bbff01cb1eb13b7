package feed

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func jobOf(id, asks, key string) *Job {
	return &Job{
		Tenant: "acme", ID: id, Endpoint: "/v1/embeddings", Input: "file-1", Window: "24h", OutputTTL: time.Hour, Request: sha256.Sum256([]byte(asks)), Key: key,
		CreatedAt: time.Now().UTC().Truncate(time.Microsecond), ExpiresAt: time.Now().Add(time.Hour), Metadata: map[string]string{"a": "b"},
	}
}

func sumOf(asks string) []byte {
	sum := sha256.Sum256([]byte(asks))
	return sum[:]
}

// A request that comes twice creates one job, however close the two are.
func TestCreatedOnce(t *testing.T) {
	t.Parallel()
	s := NewStore(audittest.NewPool(t), nil)
	// The first request is not committed when the second one comes.
	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	defer pg.Rollback(t.Context(), tx)
	have, err := before(t.Context(), tx, jobOf("first", "x", ""), First)
	require.NoError(t, err)
	require.Nil(t, have)
	second := make(chan string, 1)
	go func() {
		j, _, err := s.Create(t.Context(), jobOf("again", "x", ""), Again)
		if err != nil {
			second <- err.Error()
			return
		}
		second <- j.ID
	}()
	require.Eventually(t, func() bool {
		var waits bool
		err := s.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
		return err == nil && waits
	}, 30*time.Second, 10*time.Millisecond, "the second one waits")
	_, err = tx.Exec(t.Context(), `INSERT INTO file_jobs (tenant, job_id, status, endpoint, input_file_id, completion_window, output_ttl, skip_bad_lines, request, requested_by, source_addr, user_agent, created_at, expires_at, next_at)
		VALUES ('acme', 'first', 'validating', '', '', '', 0, false, $1, '', '', '', now(), now(), now())`, sumOf("x"))
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, "first", <-second)
	j, created, err := s.Create(t.Context(), jobOf("second", "x", ""), First)
	require.NoError(t, err)
	require.True(t, created, "on purpose")
	require.Equal(t, "second", j.ID)
	j, created, err = s.Create(t.Context(), jobOf("third", "y", ""), Again)
	require.NoError(t, err)
	require.True(t, created, "it asks for something else")
	require.Equal(t, "third", j.ID)

	for i := range 2 {
		j, created, err = s.Create(t.Context(), jobOf(fmt.Sprintf("k%d", i), "x", "key"), First)
		require.NoError(t, err)
		require.Equal(t, "k0", j.ID)
		require.Equal(t, i == 0, created)
	}
	require.Equal(t, map[string]string{"a": "b"}, j.Metadata)
	_, _, err = s.Create(t.Context(), jobOf("k2", "y", "key"), First)
	require.ErrorIs(t, err, ErrKeyReused)
}

func TestPagesOfBatches(t *testing.T) {
	t.Parallel()
	s := NewStore(audittest.NewPool(t), nil)
	at := time.Now().UTC().Truncate(time.Second)
	var want []string
	for i := range 7 { // several of the same time
		j := jobOf(fmt.Sprintf("b%d", i), "x", "")
		j.CreatedAt = at.Add(time.Duration(i/3) * time.Second)
		_, _, err := s.Create(t.Context(), j, First)
		require.NoError(t, err)
		want = append([]string{j.ID}, want...)
	}
	var got []string
	for after, more := "", true; more; {
		var page []*Job
		var err error
		page, more, err = s.List(t.Context(), "acme", after, 3)
		require.NoError(t, err)
		require.NotEmpty(t, page)
		for _, j := range page {
			got = append(got, j.ID)
		}
		after = got[len(got)-1]
	}
	require.Equal(t, want, got)
	_, _, err := s.List(t.Context(), "other", "b1", 3)
	require.ErrorIs(t, err, ErrNotFound)
}

// A job is worked on by one owner at a time. One whose lease has expired changes nothing any more, and neither does one whose
// job a client has cancelled.
func TestOnlyTheOwnerChangesAJob(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	s := NewStore(pool, nil)
	for _, id := range []string{"a", "b"} {
		_, _, err := s.Create(t.Context(), jobOf(id, id, ""), First)
		require.NoError(t, err)
	}
	first, second := New(Deps{Pool: pool}), New(Deps{Pool: pool})
	mine, err := first.claim(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, mine, 2)
	theirs, err := second.claim(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, theirs)

	_, err = pool.Exec(t.Context(), "UPDATE file_jobs SET lease_until = now() - interval '1 second' WHERE job_id = 'a'")
	require.NoError(t, err)
	theirs, err = second.claim(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, theirs, 1)
	cancelled, err := s.Cancel(t.Context(), "acme", "b")
	require.NoError(t, err)
	require.Equal(t, Cancelling, cancelled.Status)
	for _, c := range mine {
		require.ErrorIs(t, c.update(t.Context(), "fed_line = $5", 7), errLost, c.ID)
	}
	require.NoError(t, theirs[0].update(t.Context(), "fed_line = $5", 8))
	got, err := s.Get(t.Context(), "acme", "a")
	require.NoError(t, err)
	require.EqualValues(t, 8, got.FedLine)

	again, err := s.Cancel(t.Context(), "acme", "b")
	require.NoError(t, err, "it is being cancelled")
	require.Equal(t, cancelled.Cancelling, again.Cancelling)
	_, err = pool.Exec(t.Context(), "UPDATE file_jobs SET status = 'completed' WHERE job_id = 'a'")
	require.NoError(t, err)
	_, err = s.Cancel(t.Context(), "acme", "a")
	require.ErrorIs(t, err, ErrEnded)
	_, err = s.Cancel(t.Context(), "acme", "c")
	require.ErrorIs(t, err, ErrNotFound)
}
