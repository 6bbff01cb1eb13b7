package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A checkpoint says where every chain ended at one moment and is signed by a
// recorder. Who can write to the database can make a chain anew, so that it fits
// in itself; he cannot make the checkpoints anew that were written before and are
// kept where he cannot write.
//
// It is one line of JSON. Its last member is the signature, by Ed25519, over
// checkpointDomain and the bytes of the line before `,"signature":"`.
type checkpoint struct {
	Version int             `json:"version"` // 1
	Number  int64           `json:"number"`  // counts the checkpoints of the signer, from 1
	Time    time.Time       `json:"time"`
	Signer  string          `json:"signer"` // KeyID of the key that it is signed with
	Prev    string          `json:"prev"`   // SHA-256 of the signer's checkpoint before it, the whole line; empty: it is the first
	Chains  []checkpointEnd `json:"chains"`
}

// checkpointEnd is where a chain ended.
type checkpointEnd struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Rows      int64  `json:"rows"`
	Hash      string `json:"hash"`
}

const (
	checkpointVersion = 1
	checkpointDomain  = "batchyard audit checkpoint 1\n"
	signatureMark     = `,"signature":"`
	// maxCheckpoint bounds a line: the topic takes no more.
	maxCheckpoint = 4 << 20
)

// KeyID is the name of a public key: the first 16 bytes of its SHA-256, in hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// sign makes the line of a checkpoint, without the line's end.
func (c *checkpoint) sign(key ed25519.PrivateKey) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding a checkpoint: %w", err)
	}
	body = body[:len(body)-1] // the brace comes after the signature
	sig := ed25519.Sign(key, append([]byte(checkpointDomain), body...))
	line := append(body, signatureMark...)
	line = base64.StdEncoding.AppendEncode(line, sig)
	return append(line, `"}`...), nil
}

// signedLine is the line of a checkpoint, taken apart. Nobody has looked at the
// signature.
type signedLine struct {
	checkpoint
	signed    []byte // what the signature is over
	signature []byte
	hash      hash // of the line
}

// parseCheckpoint takes a line apart.
func parseCheckpoint(line []byte) (*signedLine, error) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) > maxCheckpoint {
		return nil, fmt.Errorf("it is longer than %d bytes", maxCheckpoint)
	}
	cut := bytes.LastIndex(line, []byte(signatureMark))
	rest, ok := bytes.CutSuffix(line, []byte(`"}`))
	if cut < 0 || !ok || len(rest) < cut+len(signatureMark) {
		return nil, errors.New("it does not end with a signature")
	}
	s := &signedLine{hash: sha256.Sum256(line)}
	var err error
	if s.signature, err = base64.StdEncoding.DecodeString(string(rest[cut+len(signatureMark):])); err != nil {
		return nil, errors.New("its signature is no base64")
	}
	body := line[:cut:cut]
	if err := json.Unmarshal(append(body, '}'), &s.checkpoint); err != nil {
		return nil, fmt.Errorf("it is no JSON of a checkpoint: %w", err)
	}
	if s.Version != checkpointVersion {
		return nil, fmt.Errorf("it has version %d and this program knows %d: a newer batchyard wrote it, or nobody did", s.Version, checkpointVersion)
	}
	s.signed = append([]byte(checkpointDomain), body...)
	return s, nil
}

// by reports whether the key has signed it.
func (s *signedLine) by(key ed25519.PublicKey) bool {
	return len(s.signature) == ed25519.SignatureSize && ed25519.Verify(key, s.signed, s.signature)
}

// Files in the directory of checkpoints.
const (
	checkpointFile = "checkpoints.jsonl"
	signingKeyFile = "signing.key"
	publicKeyFile  = "signing.pub"
)

// loadSigningKey reads a recorder's key and makes it when there is none yet. The
// public key is written beside it, for whoever verifies.
func loadSigningKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := makeSigningKey(path); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making the signing key %s: %w", path, err)
		}
		b, err = os.ReadFile(path) // of another process, when that was faster
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: %w", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("reading the signing key %s: it holds no PEM of a PKCS #8 key; make one with `openssl genpkey -algorithm ed25519`", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: it is no PKCS #8 key", path)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading the signing key %s: it is no Ed25519 key; make one with `openssl genpkey -algorithm ed25519`", path)
	}
	return key, nil
}

// makeSigningKey writes a new key, whole or not at all: when the process dies
// here, a file with a name of its own is left, which nobody reads.
func makeSigningKey(path string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".signing-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path) // fails when there is one meanwhile
}

// writePublicKey writes the public key, unless the file says the same already.
func writePublicKey(path string, key ed25519.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fmt.Errorf("encoding the public key: %w", err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return nil
	}
	if err := os.WriteFile(path, b, 0o644); err != nil { //nolint:gosec // it is public
		return fmt.Errorf("writing the public key: %w", err)
	}
	return nil
}

// ReadPublicKeys reads a PEM file of Ed25519 public keys.
func ReadPublicKeys(path string) (keys []ed25519.PublicKey, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the public key %s: %w", path, err)
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, fmt.Errorf("reading the public key %s: it holds something that is no Ed25519 public key", path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("reading the public key %s: it holds no PEM of a public key", path)
	}
	return keys, nil
}
