package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint says where every chain ended at one moment, and is signed by a recorder. Anyone who can
// write to the database can rewrite a chain so that it is consistent in itself. They cannot
// rewrite the checkpoints that were signed before and copied to a place they cannot write to.
//
// The checkpoints of a signer are the leaves of a Merkle tree, its log. What is signed is the root of the
// tree with the new leaf, as a signed note in the format of transparency logs. So a witness that knows
// nothing of chains can make sure that the signer only ever adds to its log, and a cosigned note proves
// every checkpoint before it, too.
//
//	checkpoints:   1     2     3     4        leaf: SHA-256(0x00 ‖ body)
//	               └──●──┘     └──●──┘
//	                  └─────●─────┘           note: origin, 4, root; signatures
//
// A checkpoint is one line of JSON: the body, and then two members that the leaf does not cover: "path",
// which leads from the leaf to the root, and "note".
type Checkpoint struct {
	Version int               `json:"version"` // 2
	Number  int64             `json:"number"`  // counts the signer's checkpoints, from 1
	Time    time.Time         `json:"time"`
	Origin  string            `json:"origin"` // name of the signer's log
	Signer  string            `json:"signer"` // [KeyID] of the signing key
	Chains  []CheckpointChain `json:"chains"`
}

// CheckpointChain is where a chain ended.
type CheckpointChain struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Rows      int64  `json:"rows"`
	Hash      string `json:"hash"`           // row_hash of the last row, in hex
	Root      string `json:"root,omitempty"` // of the tree over all row_hashes, in hex; [StatementsChain] has none
}

// At returns the partition of the chain.
func (c *CheckpointChain) At() TopicPartition { return TopicPartition{c.Topic, c.Partition} }

const (
	// CheckpointVersion is the only version there is.
	CheckpointVersion = 2
	signatureMark     = `,"signature":"`
	pathMark          = `,"path":[`
	// MaxCheckpoint bounds a line, in bytes; the topic accepts no larger record.
	MaxCheckpoint = 4 << 20
)

// DefaultOrigin returns the name of the log of a key, if the configuration names none. Each key has its own.
func DefaultOrigin(key ed25519.PublicKey) string { return "batchyard.invalid/audit/" + KeyID(key) }

// KeyID returns the name of a public key: the first 16 bytes of its SHA-256, in hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return fmt.Sprintf("%x", sum[:16])
}

// tail is what a line has after the body.
type tail struct {
	Path []string `json:"path"`
	Note string   `json:"note"`
}

// Sign returns the line of a checkpoint, without a newline. log is the signer's log up to the checkpoint
// before; it gets the new leaf. nodes are the hashes that the leaf completes, as of [Edge.Complete].
func (c *Checkpoint) Sign(key ed25519.PrivateKey, log *Edge) (line []byte, nodes []Hash, err error) {
	if log.Size != c.Number-1 {
		return nil, nil, fmt.Errorf("signing checkpoint %d of a log with %d", c.Number, log.Size)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a checkpoint: %w", err)
	}
	var t tail
	t.Path = make([]string, 0, len(log.Hashes)) // an array, even when empty
	for i := len(log.Hashes) - 1; i >= 0; i-- {
		t.Path = append(t.Path, base64.StdEncoding.EncodeToString(log.Hashes[i][:]))
	}
	nodes = log.Complete(LeafHash(body))
	head := TreeHead{Origin: c.Origin, Size: c.Number, Root: log.Root()}
	signed, err := head.SignNote(key)
	if err != nil {
		return nil, nil, fmt.Errorf("signing checkpoint %d: %w", c.Number, err)
	}
	t.Note = string(signed)
	rest, err := json.Marshal(t)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a checkpoint: %w", err)
	}
	line = append(body[:len(body)-1:len(body)-1], ',')
	return append(line, rest[1:]...), nodes, nil
}

// SignedCheckpoint is a checkpoint as it was read. Its path leads to its root. Its signature has not been
// verified; see [SignedCheckpoint.SignedBy].
type SignedCheckpoint struct {
	Checkpoint
	TreeHead TreeHead
	Hash     Hash   // of the line
	Body     []byte // what the leaf is the hash of
	Path     []Hash // from the leaf to the root
	Note     []byte
}

// ParseCheckpoint parses the line of a checkpoint. The error completes a sentence that begins with
// where the line is from.
func ParseCheckpoint(line []byte) (*SignedCheckpoint, error) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) > MaxCheckpoint {
		return nil, fmt.Errorf("longer than %d bytes", MaxCheckpoint)
	}
	cut := bytes.LastIndex(line, []byte(pathMark))
	if cut < 0 {
		return nil, errors.New("no path and no note at its end")
	}
	s := &SignedCheckpoint{Hash: sha256.Sum256(line), Body: append(line[:cut:cut], '}')}
	var t tail
	if err := json.Unmarshal(append([]byte("{"), line[cut+1:]...), &t); err != nil {
		return nil, fmt.Errorf("its path and note are not JSON: %w", err)
	}
	for _, p := range t.Path {
		h, err := ParseHash(p)
		if err != nil || len(s.Path) >= MaxPath {
			return nil, errors.New("its path is malformed")
		}
		s.Path = append(s.Path, h)
	}
	s.Note = []byte(t.Note)
	return s, s.parse()
}

// parse parses the body and the note, and compares them.
func (s *SignedCheckpoint) parse() error {
	if err := json.Unmarshal(s.Body, &s.Checkpoint); err != nil {
		return fmt.Errorf("not the JSON of a checkpoint: %w", err)
	}
	if s.Version != CheckpointVersion {
		return fmt.Errorf("version %d, but this program knows only version %d: use the version of batchyard that wrote it", s.Version, CheckpointVersion)
	}
	text, ok := NoteText(s.Note)
	if !ok {
		return errors.New("its note is not a signed note")
	}
	var err error
	if s.TreeHead, err = ParseTreeHead(text); err != nil {
		return fmt.Errorf("its note is %w", err)
	}
	if s.TreeHead.Origin != s.Origin || s.TreeHead.Size != s.Number {
		return fmt.Errorf("its note is about checkpoint %d of %q, and it is number %d of %q", s.TreeHead.Size, Short(s.TreeHead.Origin), s.Number, Short(s.Origin))
	}
	if !CheckPath(s.Path, s.TreeHead.Root, LeafHash(s.Body), s.Number-1, s.Number) {
		return errors.New("its path does not lead to the root in its note")
	}
	return nil
}

// SignedBy reports whether the note was signed with the key of the log.
func (s *SignedCheckpoint) SignedBy(key ed25519.PublicKey) bool {
	v, err := LogVerifier(s.Origin, key)
	if err != nil {
		return false
	}
	_, err = note.Open(s.Note, note.VerifierList(v))
	return err == nil
}

// Before returns the root of the log before this checkpoint was added.
func (s *SignedCheckpoint) Before() Hash {
	e := s.edgeBefore()
	return e.Root()
}

// Log returns the log with this checkpoint as its last.
func (s *SignedCheckpoint) Log() Edge {
	e := s.edgeBefore()
	e.Append(LeafHash(s.Body), nil)
	return e
}

// edgeBefore returns the log before: the path of the last leaf has the roots of its subtrees, the smallest
// first. CheckPath has made sure that there are as many as there should be.
func (s *SignedCheckpoint) edgeBefore() Edge {
	e := Edge{Size: s.Number - 1}
	for i := len(s.Path) - 1; i >= 0; i-- {
		e.Hashes = append(e.Hashes, s.Path[i])
	}
	return e
}

// Cosigned is the note of a checkpoint with the signatures of witnesses. It is a line of its own, because
// witnesses may answer later: {"cosigned":"NOTE","number":17,"signer":"…"}.
type Cosigned struct {
	Note   string `json:"cosigned"`
	Number int64  `json:"number"`
	Signer string `json:"signer"`
}

const cosignedMark = `{"cosigned":`

// IsCosigned reports whether a line is of the form of [Cosigned].
func IsCosigned(line []byte) bool { return bytes.HasPrefix(line, []byte(cosignedMark)) }

// Line returns the line.
func (c *Cosigned) Line() ([]byte, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding a cosigned checkpoint: %w", err)
	}
	return line, nil
}

// ParseCosigned parses such a line. No signature has been verified.
func ParseCosigned(line []byte) (*Cosigned, TreeHead, error) {
	c := &Cosigned{}
	if len(line) > 2*MaxNote {
		return nil, TreeHead{}, fmt.Errorf("longer than %d bytes", 2*MaxNote)
	}
	if err := json.Unmarshal(line, c); err != nil {
		return nil, TreeHead{}, fmt.Errorf("not the JSON of a cosigned checkpoint: %w", err)
	}
	text, ok := NoteText([]byte(c.Note))
	if !ok {
		return nil, TreeHead{}, errors.New("its note is not a signed note")
	}
	head, err := ParseTreeHead(text)
	if err != nil {
		return nil, TreeHead{}, fmt.Errorf("its note is %w", err)
	}
	if head.Size != c.Number {
		return nil, TreeHead{}, fmt.Errorf("its note is about checkpoint %d, and it is number %d", head.Size, c.Number)
	}
	return c, head, nil
}
