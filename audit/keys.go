package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Files in audit.checkpoint_dir. A checkpoint file that is full is renamed to
// checkpoints-before-N.jsonl, where N is the number of the first checkpoint in the next file.
const (
	CheckpointFile = "checkpoints.jsonl"
	SigningKeyFile = "signing.key"
	PublicKeyFile  = "signing.pub"
	LogKeyFile     = "log.vkey" // the public key with the origin, for witnesses
)

// LoadSigningKey reads the Ed25519 key in a PEM file (PKCS #8), and creates the file if it does
// not exist.
func LoadSigningKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := createSigningKey(path); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("creating the signing key %s: %w", path, err)
		}
		b, err = os.ReadFile(path) // another process may have been faster; then it is that one's key
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: %w", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("reading the signing key %s: not a PEM file of a PKCS #8 key; create one with `openssl genpkey -algorithm ed25519`", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: not a PKCS #8 key", path)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading the signing key %s: not an Ed25519 key; create one with `openssl genpkey -algorithm ed25519`", path)
	}
	return key, nil
}

// createSigningKey writes a new key, completely or not at all. If the process dies here, a temporary
// file is left that nothing reads.
func createSigningKey(path string) error {
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
	return os.Link(f.Name(), path) // fails if another process has created one in the meantime
}

// WritePublicKey writes the public key to a PEM file, unless it is there already.
func WritePublicKey(path string, key ed25519.PublicKey) error {
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

// ReadPublicKeys reads the Ed25519 public keys in a PEM file, at least one.
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
			return nil, fmt.Errorf("reading the public key %s: a block that is not an Ed25519 public key", path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("reading the public key %s: no public key in PEM format in it", path)
	}
	return keys, nil
}
