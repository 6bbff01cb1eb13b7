// Package statements adds signed statements to the audit log. A statement explains what would otherwise
// look like tampering; package audit specifies it, and package verify believes it only with a signature.
package statements

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// maxAdopted bounds the entries of audit_dropped that the first statement covers.
const maxAdopted = 1 << 20

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Append signs a statement as the next one and adds it, in a transaction of the caller: what it explains
// happens in the same transaction, so that neither is there without the other. The caller sets the kind,
// the actor and the subject.
func Append(ctx context.Context, tx pgx.Tx, key ed25519.PrivateKey, s *audit.Statement) error {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", pg.StatementLock); err != nil {
		return fmt.Errorf("waiting for another statement of the audit log: %w", err)
	}
	end, err := End(ctx, tx)
	if err != nil {
		return err
	}
	s.Number, s.Prev = end.Rows+1, hex.EncodeToString(end.Hash[:])
	s.Time = time.Now().UTC().Truncate(time.Millisecond)
	line, err := s.Sign(key)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO audit_statements (number, kind, noted_at, statement) VALUES ($1, $2, $3, $4)", s.Number, string(s.Kind), s.Time, string(line))
	if err != nil {
		return fmt.Errorf("writing a statement of the audit log: %w", err)
	}
	return nil
}

// End returns where the chain of statements ends.
func End(ctx context.Context, q Querier) (end audit.ChainEnd, err error) {
	var line string
	err = q.QueryRow(ctx, "SELECT number, statement FROM audit_statements ORDER BY number DESC LIMIT 1").Scan(&end.Rows, &line)
	if errors.Is(err, pgx.ErrNoRows) {
		return audit.ChainEnd{Hash: audit.Genesis(audit.StatementsChain)}, nil
	}
	if err != nil {
		return end, fmt.Errorf("reading the last statement of the audit log: %w", err)
	}
	end.Hash = audit.LineHash([]byte(line))
	return end, nil
}

// LastSchema returns what the last statement about the schema says; nil if there is none.
func LastSchema(ctx context.Context, q Querier) (*audit.SchemaVersion, error) {
	var line string
	err := q.QueryRow(ctx, "SELECT statement FROM audit_statements WHERE kind = $1 ORDER BY number DESC LIMIT 1", string(audit.SchemaSeen)).Scan(&line)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the last statement about the schema: %w", err)
	}
	s, _, err := audit.ParseStatement([]byte(line), nil)
	if err != nil {
		return nil, fmt.Errorf("the last statement about the schema is %w", err)
	}
	return s.Schema, nil
}

// Runs reads runs of audit_dropped in the order of [audit.RunsDigest]. where is a condition on the table.
func Runs(ctx context.Context, q Querier, where string, args ...any) ([]audit.DroppedRun, error) {
	rows, err := q.Query(ctx, `SELECT topic, partition, first_seq, last_seq, prev_hash, row_hash, CASE WHEN day BETWEEN '1970-01-01' AND '9999-01-01' THEN to_char(day, 'YYYY-MM-DD') ELSE '' END,
		CASE WHEN dropped_at BETWEEN '1970-01-01Z' AND '9999-01-01Z' THEN dropped_at ELSE '1970-01-01Z' END FROM audit_dropped WHERE `+where+` ORDER BY topic, partition, first_seq`, args...)
	if err != nil {
		return nil, fmt.Errorf("reading audit_dropped: %w", err)
	}
	runs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r audit.DroppedRun, err error) {
		return r, row.Scan(&r.Topic, &r.Partition, &r.First, &r.Last, &r.Prev, &r.Hash, &r.Day, &r.At)
	})
	if err != nil {
		return nil, fmt.Errorf("reading audit_dropped: %w", err)
	}
	return runs, nil
}

// Describe returns what a statement says about runs.
func Describe(runs []audit.DroppedRun) *audit.DroppedRows {
	d := &audit.DroppedRows{Runs: len(runs), Digest: audit.RunsDigest(runs)}
	for _, r := range runs {
		d.Rows += r.Last - r.First + 1
	}
	return d
}

// Adopted returns what was dropped before the first statement, for that statement to cover; nil for nothing.
func Adopted(ctx context.Context, tx pgx.Tx) (*audit.DroppedRows, error) {
	runs, err := Runs(ctx, tx, "true")
	if err != nil || len(runs) == 0 {
		return nil, err
	}
	if len(runs) > maxAdopted {
		return nil, fmt.Errorf("audit_dropped has more than %d entries, more than retention ever writes", maxAdopted)
	}
	return Describe(runs), nil
}
