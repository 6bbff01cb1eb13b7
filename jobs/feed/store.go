package feed

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/pg"
)

// Errors of a [Store]. Any other means that Postgres does not answer.
var (
	ErrNotFound  = errors.New("there is no such batch")
	ErrEnded     = errors.New("the batch has ended, or its output is being written")
	ErrKeyReused = errors.New("the idempotency key belongs to another request")
)

// retryWindow is how long after a request the same one, sent again by an SDK on its own, is taken for it. SDKs
// give up within minutes.
const retryWindow = "1 hour"

// Store reads and changes jobs for clients. It may be used by any goroutine.
type Store struct {
	pool *pgxpool.Pool
	kick func() // wakes the feeder of this process
}

// NewStore returns a store. kick, if not nil, is called when there is something to do.
func NewStore(pool *pgxpool.Pool, kick func()) *Store {
	if kick == nil {
		kick = func() {}
	}
	return &Store{pool: pool, kick: kick}
}

// Attempt says whether a request may be one that was sent before.
type Attempt int

// The attempts.
const (
	First Attempt = iota
	Again         // an SDK says that it sends the request again
)

// Create creates a job, unless the request has created it before: then it returns that one. The idempotency
// key decides, or, for a request that was sent again, what it asks for.
func (s *Store) Create(ctx context.Context, j *Job, a Attempt) (_ *Job, created bool, err error) {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("creating batch %s: %w", j.ID, err)
	}
	defer pg.Rollback(ctx, tx)
	have, err := before(ctx, tx, j, a)
	if err != nil || have != nil {
		return have, false, err
	}
	var metadata []byte
	if len(j.Metadata) > 0 {
		metadata, _ = json.Marshal(j.Metadata) // of strings: it cannot fail
	}
	_, err = tx.Exec(ctx, `INSERT INTO file_jobs (tenant, job_id, status, endpoint, input_file_id, completion_window, output_ttl, metadata, skip_bad_lines, request, idempotency_key,
			requested_by, source_addr, user_agent, created_at, expires_at, next_at)
		VALUES ($1, $2, 'validating', $3, $4, $5, $6, $7, $8, $9, nullif($10, ''), $11, $12, $13, $14, $15, now())`,
		j.Tenant, j.ID, j.Endpoint, j.Input, j.Window, int64(j.OutputTTL/time.Second), metadata, j.SkipBad, j.Request[:], j.Key,
		j.Origin.Actor, j.Origin.Addr, j.Origin.UserAgent, j.CreatedAt, j.ExpiresAt)
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err != nil {
		return nil, false, fmt.Errorf("creating batch %s: %w", j.ID, err)
	}
	j.Status = Validating
	s.kick()
	return j, true, nil
}

// before returns the job that the same request has created; nil if there is none. Two of the same requests wait for
// each other: the second one finds what the first one has created.
func before(ctx context.Context, tx pgx.Tx, j *Job, a Attempt) (*Job, error) {
	lock, query, arg := "key\x00"+j.Tenant+"\x00"+j.Key, `idempotency_key = $2`, any(j.Key)
	if j.Key == "" {
		lock, query, arg = "request\x00"+j.Tenant+"\x00"+hex.EncodeToString(j.Request[:]), `request = $2 AND created_at > now() - interval '`+retryWindow+`'`, any(j.Request[:])
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1::bytea::text, 0))`, []byte(lock)); err != nil {
		return nil, fmt.Errorf("looking for an earlier request of batch %s: %w", j.ID, err)
	}
	if j.Key == "" && a == First {
		return nil, nil
	}
	have, err := scan(tx.QueryRow(ctx, `SELECT `+columns+` FROM file_jobs WHERE tenant = $1 AND `+query+` ORDER BY created_at DESC LIMIT 1`, j.Tenant, arg))
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for an earlier request of batch %s: %w", j.ID, err)
	case have.Request != j.Request:
		return nil, ErrKeyReused
	}
	return have, nil
}

// Get returns a job, or [ErrNotFound].
func (s *Store) Get(ctx context.Context, tenant, id string) (*Job, error) {
	j, err := scan(s.pool.QueryRow(ctx, `SELECT `+columns+` FROM file_jobs WHERE tenant = $1 AND job_id = $2`, tenant, id))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading batch %s: %w", id, err)
	}
	return j, nil
}

// List returns a page of a tenant's jobs, newest first, after the one with the id after. more says whether there are others
// after it. [ErrNotFound] means that there is no job with that id.
func (s *Store) List(ctx context.Context, tenant, after string, limit int) (page []*Job, more bool, err error) {
	where, args := "", []any{tenant, limit + 1}
	if after != "" {
		last, err := s.Get(ctx, tenant, after)
		if err != nil {
			return nil, false, err
		}
		where, args = ` AND (created_at, job_id) < ($3::timestamptz, $4)`, append(args, last.CreatedAt, after)
	}
	rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM file_jobs WHERE tenant = $1`+where+` ORDER BY created_at DESC, job_id DESC LIMIT $2`, args...)
	if err == nil {
		page, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (*Job, error) { return scan(r) })
	}
	if err != nil {
		return nil, false, fmt.Errorf("listing batches: %w", err)
	}
	if len(page) > limit {
		return page[:limit], true, nil
	}
	return page, false, nil
}

// Cancel asks to cancel a job, and returns it. [ErrEnded] means that it is too late; the job is returned as well.
func (s *Store) Cancel(ctx context.Context, tenant, id string) (*Job, error) {
	j, err := scan(s.pool.QueryRow(ctx, `UPDATE file_jobs SET status = 'cancelling', cancelling_at = now(), next_at = now()
		WHERE tenant = $1 AND job_id = $2 AND status IN ('validating', 'in_progress') RETURNING `+columns, tenant, id))
	if err == nil {
		s.kick()
		return j, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("cancelling batch %s: %w", id, err)
	}
	j, err = s.Get(ctx, tenant, id)
	if err == nil && j.Status != Cancelling {
		err = ErrEnded
	}
	return j, err
}
