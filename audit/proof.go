package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/task"
)

// A proof is a file that shows, without the database, that rows are in the audit log. It has lines of JSON: a
// checkpoint, and a line for each row.
//
//	row: prev, fields ──SHA-256──▶ row_hash ──path──▶ root of its chain's tree, which is in the
//	checkpoint: body ──path──▶ root of the signer's log, which is in the
//	note: signed by a recorder, and cosigned by witnesses

// ProofVersion is the member "proof" of the first line.
const ProofVersion = "batchyard audit proof 1"

// maxProofLine bounds a line of a proof: an answer of a device, in base64, and its row.
const maxProofLine = 256 << 20

// ProofSubject is what a proof is about: a task, or a job. Every row of the proof has it, or a result that has it beside it.
type ProofSubject struct {
	Tenant string `json:"tenant"`
	Task   string `json:"task_id,omitempty"`
	Job    string `json:"job_id,omitempty"`
}

// ProofHead is the first line of a proof.
type ProofHead struct {
	Proof string `json:"proof"` // [ProofVersion]
	ProofSubject
	Rows  int      `json:"rows"`  // lines that follow
	Body  string   `json:"body"`  // of a checkpoint
	Index int64    `json:"index"` // of its leaf in the signer's log, from 0
	Path  []string `json:"path"`  // from the leaf to the root in the note
	Note  string   `json:"note"`  // signed
}

// ProofRow is a line about a row.
type ProofRow struct {
	Chain  string   `json:"chain"` // topic/partition
	Row    int64    `json:"row"`   // its number in the chain, from 1
	Prev   []byte   `json:"prev"`
	Fields []byte   `json:"fields"` // [HashedColumns] as COPY writes them in binary
	Path   []string `json:"path"`   // from the row's leaf to the root of the chain in the body
	// Answer is what the device answered, if a line of the job's output has it in another form, such as
	// without its white space. It is compared with the digest in the row.
	Answer []byte `json:"answer,omitempty"`
	// Results are rows of the table results whose digests the row has, in the order of these digests:
	// [ResultColumns] as COPY writes them in binary.
	Results [][]byte `json:"results,omitempty"`
}

// EncodePath returns the hashes of a path in base64.
func EncodePath(path []Hash) []string {
	out := make([]string, len(path))
	for i, h := range path {
		out[i] = base64.StdEncoding.EncodeToString(h[:])
	}
	return out
}

func decodePath(path []string) ([]Hash, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("a path of %d hashes", len(path))
	}
	out := make([]Hash, len(path))
	for i, s := range path {
		h, err := ParseHash(s)
		if err != nil {
			return nil, fmt.Errorf("a hash of a path is %w", err)
		}
		out[i] = h
	}
	return out, nil
}

// Trust says whose signatures prove something.
type Trust struct {
	Keys      []ed25519.PublicKey
	Witnesses []note.Verifier
	Quorum    int // of the witnesses; 0: their signatures are counted only
}

// Proven is what a proof shows.
type Proven struct {
	ProofSubject
	Checkpoint Checkpoint
	Signer     string
	Witnesses  []string    // that have cosigned it
	Cosigned   []time.Time // when, for each
	Rows       int
}

// ProvenColumns are the fields of a proven row by the names of their columns; NULL is nil.
type ProvenColumns struct {
	Chain  TopicPartition
	Seq    int64
	Fields [][]byte // as Postgres encodes them in binary, in the order of [HashedColumns]
	Answer []byte
	// Results are those of the job whose digests the row has. Such a row may be about another job of the tenant: the
	// last row of the transaction that recorded the results has the digests.
	Results []*task.Result
	Aside   bool // the row is about something else: it is there for its digests only
}

// Text returns a column of text.
func (p *ProvenColumns) Text(column int) string { return string(p.Fields[column]) }

// Time returns a column with a time.
func (p *ProvenColumns) Time(column int) time.Time {
	return timeOf(p.Fields[column])
}

// CheckProof checks a proof and calls fn for each row that it proves. An error says why it proves nothing; rows
// for which fn was called before are proven. A proof has one form only, so that no byte of it can be changed. It
// shows that rows are in the log, and not that the log has no others about the subject. The rows are in the order
// of their places in the log, so that none is there twice.
func CheckProof(r io.Reader, trust Trust, fn func(*ProvenColumns) error) (*Proven, error) {
	lines := bufio.NewReaderSize(r, 64<<10)
	first, err := proofLine(lines)
	if err != nil {
		return nil, fmt.Errorf("reading the proof: %w", err)
	}
	out, announced, roots, err := checkHead(first, trust)
	if err != nil {
		return nil, err
	}
	var last *ProvenColumns
	for {
		line, err := proofLine(lines)
		if errors.Is(err, io.EOF) {
			if out.Rows != announced || announced == 0 {
				return nil, fmt.Errorf("the proof has %d of the %d rows that its first line announces", out.Rows, announced)
			}
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the proof: %w", err)
		}
		row, err := checkRow(line, roots)
		if err == nil {
			err = out.about(row)
		}
		if err == nil && !row.follows(last) {
			err = errors.New("it is there twice, or not in the order of places in the log")
		}
		if err != nil {
			return nil, fmt.Errorf("row %d of the proof: %w", out.Rows+1, err)
		}
		last = row
		out.Rows++
		if err := fn(row); err != nil {
			return nil, err
		}
	}
}

// proofLine reads a line of bounded length, which has an end.
func proofLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte("\n")), nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, errors.New("its last line is incomplete")
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxProofLine:
			return nil, fmt.Errorf("a line of more than %d bytes", maxProofLine)
		}
	}
}

// chainRoot is what a checkpoint says about the tree of a chain.
type chainRoot struct {
	rows int64
	root Hash
}

func strictly(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("not the JSON of a proof: %w", err)
	}
	var only bytes.Buffer
	e := json.NewEncoder(&only)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil || !bytes.Equal(bytes.TrimSuffix(only.Bytes(), []byte("\n")), line) {
		return errors.New("not the JSON of a proof: it is written in another form than batchyard writes")
	}
	return nil
}

// follows reports whether a row has its place in the log after another; nil is before all.
func (p *ProvenColumns) follows(last *ProvenColumns) bool {
	return last == nil || cmp.Or(strings.Compare(last.Chain.Topic, p.Chain.Topic), cmp.Compare(last.Chain.Partition, p.Chain.Partition), cmp.Compare(last.Seq, p.Seq)) < 0
}

// about checks that a row is about the subject, or aside, with the digests of results that are about it.
func (s *ProofSubject) about(r *ProvenColumns) error {
	for _, of := range r.Results {
		if s.Job == "" || of.Tenant != s.Tenant || of.JobID != s.Job {
			return fmt.Errorf("it has a result of task %q of tenant %q, which is not what the proof is about", Short(of.TaskID), Short(of.Tenant))
		}
	}
	if t := r.Text(ColTenant); len(r.Results) > 0 && (t == s.Tenant || t == "") {
		r.Aside = t != s.Tenant || r.Text(ColJob) != s.Job
		return nil
	}
	if r.Text(ColTenant) != s.Tenant || s.Task != "" && r.Text(ColTask) != s.Task || s.Job != "" && r.Text(ColJob) != s.Job || s.Task == "" && s.Job == "" {
		return fmt.Errorf("it is about task %q and job %q of tenant %q, and not about what the proof says", Short(r.Text(ColTask)), Short(r.Text(ColJob)), Short(r.Text(ColTenant)))
	}
	return nil
}

// checkHead checks the first line, and returns the number of rows that follow and the roots of the chains.
func checkHead(line []byte, trust Trust) (*Proven, int, map[TopicPartition]chainRoot, error) {
	var h ProofHead
	if err := strictly(line, &h); err != nil {
		return nil, 0, nil, err
	}
	if h.Proof != ProofVersion {
		return nil, 0, nil, fmt.Errorf("not a proof of this version: %q", Short(h.Proof))
	}
	out := &Proven{ProofSubject: h.ProofSubject}
	if err := json.Unmarshal([]byte(h.Body), &out.Checkpoint); err != nil {
		return nil, 0, nil, fmt.Errorf("the checkpoint is not JSON: %w", err)
	}
	head, err := openNote([]byte(h.Note), trust, out)
	if err != nil {
		return nil, 0, nil, err
	}
	path, err := decodePath(h.Path)
	if err != nil {
		return nil, 0, nil, err
	}
	c := &out.Checkpoint
	if c.Version != CheckpointVersion || c.Signer != out.Signer || c.Origin != head.Origin || c.Number != h.Index+1 {
		return nil, 0, nil, errors.New("the checkpoint is not of the log that was signed")
	}
	if !CheckPath(path, head.Root, LeafHash([]byte(h.Body)), h.Index, head.Size) {
		return nil, 0, nil, errors.New("the path of the checkpoint does not lead to the root that was signed")
	}
	roots := map[TopicPartition]chainRoot{}
	for _, e := range c.Chains {
		if b, err := hex.DecodeString(e.Root); err == nil && len(b) == sha256.Size {
			roots[e.At()] = chainRoot{e.Rows, Hash(b)}
		}
	}
	return out, h.Rows, roots, nil
}

// openNote verifies the signatures of a note.
func openNote(signed []byte, trust Trust, out *Proven) (head TreeHead, err error) {
	text, ok := NoteText(signed)
	if !ok {
		return head, errors.New("the checkpoint has no signed note")
	}
	if head, err = ParseTreeHead(text); err != nil {
		return head, fmt.Errorf("the note is %w", err)
	}
	logs := map[uint32]string{}
	known := append([]note.Verifier(nil), trust.Witnesses...)
	for _, k := range trust.Keys {
		v, err := LogVerifier(head.Origin, k)
		if err != nil {
			return head, err
		}
		known, logs[v.KeyHash()] = append(known, v), KeyID(k)
	}
	n, err := note.Open(signed, note.VerifierList(known...))
	if err != nil {
		return head, fmt.Errorf("the note is not signed by a trusted key: %w", err)
	}
	for _, s := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil { // package note is less strict
			return head, fmt.Errorf("a signature of the note is not base64: %w", err)
		}
	}
	for _, s := range n.Sigs {
		if id, ok := logs[s.Hash]; ok && s.Name == head.Origin {
			out.Signer = id
			continue
		}
		out.Witnesses, out.Cosigned = append(out.Witnesses, s.Name), append(out.Cosigned, CosignedAt(s))
	}
	switch {
	case out.Signer == "":
		return head, errors.New("the note is not signed by a trusted key of a recorder")
	case len(out.Witnesses) < trust.Quorum:
		return head, fmt.Errorf("the checkpoint has the signatures of %d trusted witnesses instead of %d", len(out.Witnesses), trust.Quorum)
	}
	return head, nil
}

// checkRow checks a line about a row.
func checkRow(line []byte, roots map[TopicPartition]chainRoot) (*ProvenColumns, error) {
	var r ProofRow
	if err := strictly(line, &r); err != nil {
		return nil, err
	}
	row := &ProvenColumns{Seq: r.Row, Answer: r.Answer}
	var err error
	if row.Fields, err = splitFields(r.Fields); err != nil {
		return nil, err
	}
	if len(r.Prev) != sha256.Size || len(row.Fields[ColPartition]) != 4 || len(row.Fields[ColSeq]) != 8 {
		return nil, errors.New("a hash or a number is malformed")
	}
	row.Chain = TopicPartition{row.Text(ColTopic), int32(binary.BigEndian.Uint32(row.Fields[ColPartition]))}
	if row.Chain.String() != r.Chain || int64(binary.BigEndian.Uint64(row.Fields[ColSeq])) != r.Row {
		return nil, errors.New("the row is another one than the line says")
	}
	root, ok := roots[row.Chain]
	if !ok {
		return nil, fmt.Errorf("the checkpoint says nothing about chain %s", row.Chain)
	}
	path, err := decodePath(r.Path)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(r.Answer); r.Answer != nil && !bytes.Equal(sum[:], row.Fields[ColOutputSHA256]) {
		return nil, errors.New("the answer beside the row is not the one whose digest the row has")
	}
	if row.Results, err = provenResults(r.Results, row.Fields[ColDigests]); err != nil {
		return nil, err
	}
	own, _ := RowHash(Hash(r.Prev), r.Fields, nil)
	if !CheckPath(path, root.root, RowLeaf(own), r.Row-1, root.rows) {
		return nil, fmt.Errorf("row %d of %s is not in the log: its path does not lead to the root in the checkpoint", r.Row, row.Chain)
	}
	return row, nil
}

// splitFields splits what a hash covers into its columns.
func splitFields(b []byte) ([][]byte, error) { return splitColumns(b, ColPrev) }

// splitColumns splits so many columns.
func splitColumns(b []byte, width int) ([][]byte, error) {
	out := make([][]byte, 0, width)
	for len(b) >= 4 && len(out) < width {
		n := int32(binary.BigEndian.Uint32(b))
		if b = b[4:]; n < 0 {
			if n != -1 {
				break
			}
			out = append(out, nil)
			continue
		}
		if int(n) > len(b) {
			return nil, errors.New("the fields of the row end early")
		}
		out, b = append(out, b[:n:n]), b[n:]
	}
	if len(out) != width || len(b) > 0 {
		return nil, errors.New("the row has another number of fields")
	}
	return out, nil
}
