package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// StatementKind says what a statement is about.
type StatementKind string

// The kinds of statements.
const (
	// RowsDropped: retention dropped the rows of a day.
	RowsDropped StatementKind = "rows_dropped"
	// SchemaSeen: a recorder found another version of the schema, or another version of Postgres, than
	// the last statement of this kind says. The first statement of a log is of this kind.
	SchemaSeen StatementKind = "schema_seen"
	// RestoreAccepted: an operator declared that the database was restored from a backup, so that
	// checkpoints about what the backup lacks no longer count.
	RestoreAccepted StatementKind = "restore_accepted"
	// RecordingInterrupted: recording of a partition could not simply continue.
	RecordingInterrupted StatementKind = "recording_interrupted"
)

// Statement explains what would otherwise be a finding. It is signed with the key of the checkpoints, so
// someone who can write to the database cannot make one. Statements form a chain of their own,
// [StatementsChain], whose end is in every checkpoint: so they cannot take one away either, and someone
// who has the key cannot make one for an earlier time.
type Statement struct {
	Version int             `json:"version"` // 1
	Number  int64           `json:"number"`  // counts the statements of the log, from 1
	Prev    string          `json:"prev"`    // SHA-256 of the statement before, the whole line, in hex; [Genesis] for the first
	Kind    StatementKind   `json:"kind"`
	Time    time.Time       `json:"time"`
	ActorID string          `json:"actor_id"` // the recorder, or the operator
	Signer  string          `json:"signer"`   // [KeyID] of the signing key
	Dropped *DroppedRows    `json:"dropped,omitempty"`
	Schema  *SchemaVersion  `json:"schema,omitempty"`
	Restore *AcceptedBackup `json:"restore,omitempty"`
	Break   *Break          `json:"break,omitempty"`
}

// DroppedRows is what retention dropped. The first statement of a log has one without a day: it covers
// what had been dropped before there were statements.
type DroppedRows struct {
	Day       string `json:"day,omitempty"` // 2006-01-02
	Rows      int64  `json:"rows"`          // in the runs
	Runs      int    `json:"runs"`          // number of entries in audit_dropped
	Digest    string `json:"digest"`        // [RunsDigest] of them
	Retention string `json:"retention,omitempty"`
}

// SchemaVersion is what a recorder found.
type SchemaVersion struct {
	Version     int64  `json:"version"`     // of the migrations
	Server      int    `json:"server"`      // major version of Postgres
	Definitions string `json:"definitions"` // digest of the definitions of tables, views, functions and triggers
}

// AcceptedBackup is what an operator accepted after a restore.
type AcceptedBackup struct {
	Reason string          `json:"reason"`
	Chains []AcceptedChain `json:"chains"`
}

// AcceptedChain is where a chain ended when a restore was accepted. Checkpoints signed before, about
// rows from the number From on, no longer count.
type AcceptedChain struct {
	CheckpointChain
	From int64 `json:"from"`
}

const (
	statementVersion = 1
	statementDomain  = "batchyard audit statement 1\n"
)

// StatementsChain is the name of the chain of statements in checkpoints. It is no topic.
var StatementsChain = TopicPartition{Topic: "statements"}

// DroppedRun is a run of consecutive rows of a chain that retention dropped, as audit_dropped has it.
type DroppedRun struct {
	TopicPartition
	First, Last int64
	Prev, Hash  []byte // prev_hash of the first row and row_hash of the last
	Day         string // 2006-01-02; empty for a day that no recorder writes
	At          time.Time
}

// RunsDigest returns the SHA-256 of runs in hex, in the order of topic, partition and first row.
func RunsDigest(runs []DroppedRun) string {
	h := sha256.New()
	for _, r := range runs {
		_, _ = fmt.Fprintf(h, "%s %d %d %x %x %s %d\n", r.TopicPartition, r.First, r.Last, r.Prev, r.Hash, r.Day, r.At.UnixMicro()) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Sign returns the statement as one signed line. It sets Version and Signer.
func (s *Statement) Sign(key ed25519.PrivateKey) ([]byte, error) {
	s.Version = statementVersion
	s.Signer = KeyID(key.Public().(ed25519.PublicKey)) //nolint:errcheck // Ed25519 keys have no other
	line, err := signLine(statementDomain, s, key)
	if err != nil {
		return nil, fmt.Errorf("encoding a statement: %w", err)
	}
	return line, nil
}

// ParseStatement parses the line of a statement, and reports whether one of the keys, by their ids, has
// signed it. The error completes a sentence that begins with where the line is from.
func ParseStatement(line []byte, keys map[string]ed25519.PublicKey) (s *Statement, signed bool, err error) {
	body, signature, err := parseLine(line)
	if err != nil {
		return nil, false, err
	}
	s = &Statement{}
	if err := json.Unmarshal(append(body[:len(body):len(body)], '}'), s); err != nil {
		return nil, false, fmt.Errorf("not the JSON of a statement: %w", err)
	}
	if s.Version != statementVersion {
		return nil, false, fmt.Errorf("version %d, but this program knows only version %d: use the version of batchyard that wrote it", s.Version, statementVersion)
	}
	key, ok := keys[s.Signer]
	signed = ok && len(signature) == ed25519.SignatureSize && ed25519.Verify(key, append([]byte(statementDomain), body...), signature)
	return s, signed, nil
}

// LineHash returns the hash by which the statement after this line names it.
func LineHash(line []byte) Hash { return sha256.Sum256(line) }
