package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// The formats of this file are those of C2SP: signed notes (c2sp.org/signed-note), the checkpoints of
// transparency logs (c2sp.org/tlog-checkpoint), and cosignatures (c2sp.org/tlog-cosignature).

// MaxNote bounds a signed note, in bytes.
const MaxNote = 64 << 10

// TreeHead is what a signed note says about a log: how many leaves it has, and their root.
type TreeHead struct {
	Origin string // name of the log
	Size   int64
	Root   Hash
}

// Text returns the text of a note that says so.
func (h *TreeHead) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", h.Origin, h.Size, base64.StdEncoding.EncodeToString(h.Root[:]))
}

// ParseTreeHead parses the text of a note. Extension lines are ignored.
func ParseTreeHead(text string) (h TreeHead, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[len(lines)-1] != "" {
		return h, errors.New("not a checkpoint: it has less than three lines")
	}
	for _, l := range lines[:len(lines)-1] {
		if l == "" {
			return h, errors.New("not a checkpoint: it has an empty line")
		}
	}
	h.Origin = lines[0]
	h.Size, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || h.Size < 0 || h.Size > MaxLeaves || strconv.FormatInt(h.Size, 10) != lines[1] {
		return h, errors.New("not a checkpoint: its second line is not a number of leaves")
	}
	root, err := ParseHash(lines[2])
	if err != nil {
		return h, errors.New("not a checkpoint: its third line is not the hash of a root")
	}
	h.Root = root
	return h, nil
}

// ParseHash parses a hash in base64, of which there is only one form.
func ParseHash(s string) (h Hash, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(h) || base64.StdEncoding.EncodedLen(len(h)) != len(s) {
		return h, errors.New("not a SHA-256 in base64")
	}
	return Hash(b), nil
}

// NoteText returns the text of a note that has not been verified, with its last newline.
func NoteText(signed []byte) (text string, ok bool) {
	at := bytes.LastIndex(signed, []byte("\n\n"))
	if at < 0 || len(signed) > MaxNote {
		return "", false
	}
	return string(signed[:at+1]), true
}

// SignNote signs a tree head with the key of its log. The name of the key is the origin.
func (h *TreeHead) SignNote(key ed25519.PrivateKey) ([]byte, error) {
	v, err := LogVerifier(h.Origin, key.Public().(ed25519.PublicKey)) //nolint:errcheck // Ed25519 keys have no other
	if err != nil {
		return nil, err
	}
	s, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", h.Origin, v.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, key.Seed()...))))
	if err != nil {
		return nil, fmt.Errorf("preparing the signing key of %s: %w", h.Origin, err)
	}
	return note.Sign(&note.Note{Text: h.Text()}, s)
}

// Signature types of signed notes.
const (
	algEd25519     = 1
	algCosignature = 4
)

// LogKey returns the key with which the log of an origin signs as text, for witnesses: a "vkey".
func LogKey(origin string, key ed25519.PublicKey) (string, error) {
	text, err := note.NewEd25519VerifierKey(origin, key)
	if err == nil {
		_, err = note.NewVerifier(text)
	}
	if err != nil {
		return "", fmt.Errorf("%q cannot be the name of a key: it must be without spaces and plus signs: %w", origin, err)
	}
	return text, nil
}

// LogVerifier returns what verifies signatures by the log of an origin.
func LogVerifier(origin string, key ed25519.PublicKey) (note.Verifier, error) {
	text, err := LogKey(origin, key)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(text)
}

// cosigner is the key of a witness: it signs the time, too.
type cosigner struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
	key    ed25519.PrivateKey // nil: it only verifies
	now    func() time.Time
}

// Name returns the name of the witness.
func (c *cosigner) Name() string { return c.name }

// KeyHash returns the id of the key.
func (c *cosigner) KeyHash() uint32 { return c.hash }

// Verify reports whether the witness has cosigned the text of a note.
func (c *cosigner) Verify(text, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at > 0 && at <= math.MaxInt64 && ed25519.Verify(c.public, cosigned(at, text), sig[8:])
}

// Sign cosigns the text of a note now.
func (c *cosigner) Sign(text []byte) ([]byte, error) {
	at := uint64(c.now().Unix())
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(c.key, cosigned(at, text))...), nil
}

// cosigned returns what a witness signs.
func cosigned(at uint64, text []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", at), text...)
}

func newCosigner(name string, public ed25519.PublicKey) *cosigner {
	sum := sha256.Sum256(append(append([]byte(name), '\n', algCosignature), public...))
	return &cosigner{name: name, hash: binary.BigEndian.Uint32(sum[:]), public: public}
}

// CosignatureSigner returns what cosigns notes as the witness of a name.
func CosignatureSigner(name string, key ed25519.PrivateKey, now func() time.Time) note.Signer {
	c := newCosigner(name, key.Public().(ed25519.PublicKey)) //nolint:errcheck // Ed25519 keys have no other
	c.key, c.now = key, now
	return c
}

// WitnessKey returns the key of a witness as text, which [WitnessVerifier] reads: a "vkey".
func WitnessKey(name string, key ed25519.PublicKey) (string, error) {
	if _, err := LogKey(name, key); err != nil {
		return "", err
	}
	c := newCosigner(name, key)
	return fmt.Sprintf("%s+%08x+%s", name, c.hash, base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, key...))), nil
}

// WitnessVerifier returns what verifies the cosignatures of a witness, from its key as text.
func WitnessVerifier(vkey string) (note.Verifier, error) {
	const remedy = "copy the key that `batchyard audit witness` prints"
	name, rest, _ := strings.Cut(vkey, "+")
	id, encoded, ok := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) != 1+ed25519.PublicKeySize {
		return nil, fmt.Errorf("%q is not the key of a witness: %s", Short(vkey), remedy)
	}
	if key[0] != algCosignature {
		return nil, fmt.Errorf("%q is a key of type %d, not of a witness (%d): %s", Short(vkey), key[0], algCosignature, remedy)
	}
	c := newCosigner(name, key[1:])
	if fmt.Sprintf("%08x", c.hash) != id {
		return nil, fmt.Errorf("%q has another id than its name and key have: %s", Short(vkey), remedy)
	}
	if _, err := LogKey(name, key[1:]); err != nil {
		return nil, err
	}
	return c, nil
}

// Short returns the beginning of a text from outside, for messages.
func Short(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// CosignedAt returns the time in a cosignature that was verified.
func CosignedAt(s note.Signature) time.Time {
	b, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(b) < 12 {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b[4:])), 0).UTC()
}
