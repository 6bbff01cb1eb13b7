package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Checkpoint says where every chain ended at one moment, and is signed by a recorder. Anyone who can
// write to the database can rewrite a chain so that it is consistent in itself. They cannot
// rewrite the checkpoints that were signed before and copied to a place they cannot write to.
//
// A checkpoint is one line of JSON. Its last member, "signature", is an Ed25519 signature in
// base64 over [checkpointDomain] followed by the bytes of the line before `,"signature":"`.
type Checkpoint struct {
	Version int               `json:"version"` // 1
	Number  int64             `json:"number"`  // counts the signer's checkpoints, from 1
	Time    time.Time         `json:"time"`
	Signer  string            `json:"signer"` // [KeyID] of the signing key
	Prev    string            `json:"prev"`   // SHA-256 of the signer's previous checkpoint, the whole line, in hex; empty for the first
	Chains  []CheckpointChain `json:"chains"`
}

// CheckpointChain is where a chain ended.
type CheckpointChain struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Rows      int64  `json:"rows"`
	Hash      string `json:"hash"` // in hex
}

const (
	// CheckpointVersion is the only version there is.
	CheckpointVersion = 1
	checkpointDomain  = "batchyard audit checkpoint 1\n"
	signatureMark     = `,"signature":"`
	// MaxCheckpoint bounds a line, in bytes; the topic accepts no larger record.
	MaxCheckpoint = 4 << 20
)

// KeyID returns the name of a public key: the first 16 bytes of its SHA-256, in hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// Sign returns the line of a checkpoint, without a newline.
func (c *Checkpoint) Sign(key ed25519.PrivateKey) ([]byte, error) {
	line, err := signLine(checkpointDomain, c, key)
	if err != nil {
		return nil, fmt.Errorf("encoding a checkpoint: %w", err)
	}
	return line, nil
}

// signLine encodes a struct as one line of JSON, whose last member is the signature over the domain
// and what is before that member.
func signLine(domain string, v any, key ed25519.PrivateKey) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	body = body[:len(body)-1] // the brace comes after the signature
	sig := ed25519.Sign(key, append([]byte(domain), body...))
	line := append(body, signatureMark...)
	line = base64.StdEncoding.AppendEncode(line, sig)
	return append(line, `"}`...), nil
}

// parseLine splits such a line into its body without the signature, and the signature. The error
// completes a sentence that begins with where the line is from.
func parseLine(line []byte) (body, signature []byte, err error) {
	if len(line) > MaxCheckpoint {
		return nil, nil, fmt.Errorf("longer than %d bytes", MaxCheckpoint)
	}
	cut := bytes.LastIndex(line, []byte(signatureMark))
	rest, ok := bytes.CutSuffix(line, []byte(`"}`))
	if cut < 0 || !ok || len(rest) < cut+len(signatureMark) {
		return nil, nil, errors.New("no signature at its end")
	}
	if signature, err = base64.StdEncoding.DecodeString(string(rest[cut+len(signatureMark):])); err != nil {
		return nil, nil, errors.New("the signature is not base64")
	}
	return line[:cut:cut], signature, nil
}

// SignedCheckpoint is a checkpoint as it was read. Its signature has not been verified; see [SignedCheckpoint.by].
type SignedCheckpoint struct {
	Checkpoint
	Hash      Hash   // of the line
	signed    []byte // the bytes that the signature covers
	signature []byte
}

// ParseCheckpoint parses the line of a checkpoint. The error completes a sentence that begins with
// where the line is from.
func ParseCheckpoint(line []byte) (*SignedCheckpoint, error) {
	line = bytes.TrimRight(line, "\r\n")
	body, signature, err := parseLine(line)
	if err != nil {
		return nil, err
	}
	s := &SignedCheckpoint{Hash: sha256.Sum256(line), signature: signature}
	if err := json.Unmarshal(append(body, '}'), &s.Checkpoint); err != nil {
		return nil, fmt.Errorf("not the JSON of a checkpoint: %w", err)
	}
	if s.Version != CheckpointVersion {
		return nil, fmt.Errorf("version %d, but this program knows only version %d: use the version of batchyard that wrote it", s.Version, CheckpointVersion)
	}
	s.signed = append([]byte(checkpointDomain), body...)
	return s, nil
}

// SignedBy reports whether the checkpoint was signed with the key.
func (s *SignedCheckpoint) SignedBy(key ed25519.PublicKey) bool {
	return len(s.signature) == ed25519.SignatureSize && ed25519.Verify(key, s.signed, s.signature)
}
