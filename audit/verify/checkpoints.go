package verify

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/cosigned"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
)

const (
	// maxPoints bounds the rows of one chain that checkpoints are kept for: those of the newest.
	maxPoints = 100_000
	// maxCheckpoints bounds the checkpoints.
	maxCheckpoints = 4 << 20
)

// Checkpoints are signed checkpoints from any number of files and topics. The same checkpoint from
// several places counts once.
type Checkpoints struct {
	keys        map[string]ed25519.PublicKey // by their ids
	points      map[audit.TopicPartition]map[int64]*point
	seen        map[audit.Hash]*origins
	from        Origin                    // of what is being read
	successions map[string][]signedNumber // by signer
	cosigned    cosigned.Logs
	unwitnessed []string // why the newest checkpoint may not be the newest that was cosigned
	checked     bool

	unknown  map[string]int // number of checkpoints by untrusted keys
	findings []Finding
	count    int64 // number of all findings
	notes    []string
	newest   time.Time
	good     int
}

// Origin is a place that checkpoints come from, by who can write there.
type Origin uint8

// The origins.
const (
	FromDirectory Origin = 1 << iota // audit.checkpoint_dir of a recorder
	FromTopic                        // the topic in Kafka
	FromCopy                         // a copy elsewhere
	FromWitness                      // a witness has cosigned it, or one after it
)

// origins are all places that a checkpoint was found in.
type origins struct{ Origin }

// levels is the number of attackers.
const levels = 3

// attackers are those of each level, with the origins that they cannot write to.
var attackers = [levels]struct {
	who     Attacker
	trusted Origin
}{
	{WithDatabase, FromDirectory | FromTopic | FromCopy | FromWitness},
	{WithDirectory, FromTopic | FromCopy | FromWitness},
	{WithKafka, FromCopy | FromWitness},
}

// level is how far a chain is proven against an attacker.
type level struct {
	rows int64
	at   time.Time
}

// signedNumber is the place of a checkpoint in the log of its signer.
type signedNumber struct {
	number       int64
	root, before audit.Hash // of the log with it, and without it
	origins      *origins
	from         string
}

// NewCheckpoints returns an empty collection that trusts the given keys.
func NewCheckpoints(keys []ed25519.PublicKey) *Checkpoints {
	c := &Checkpoints{keys: map[string]ed25519.PublicKey{}, points: map[audit.TopicPartition]map[int64]*point{}, seen: map[audit.Hash]*origins{}, successions: map[string][]signedNumber{}, unknown: map[string]int{}}
	for _, k := range keys {
		c.keys[audit.KeyID(k)] = k
	}
	return c
}

// pointsOf returns what checkpoints say about a chain; nil for nothing.
func (c *Checkpoints) pointsOf(at audit.TopicPartition) map[int64]*point {
	if c == nil {
		return nil
	}
	return c.points[at]
}

// trusted returns the keys; none for nil.
func (c *Checkpoints) trusted() map[string]ed25519.PublicKey {
	if c == nil {
		return nil
	}
	return c.keys
}

func (c *Checkpoints) found(f Finding) {
	if c.count++; len(c.findings) < maxFindings {
		c.findings = append(c.findings, f)
	}
}

// Read reads a file of checkpoints, or all such files of a directory.
func (c *Checkpoints) Read(path string, from Origin) error {
	c.from = from
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading checkpoints: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "checkpoints*.jsonl")); err != nil {
			return fmt.Errorf("reading checkpoints in %s: %w", path, err)
		}
		single, err := filepath.Glob(filepath.Join(path, "*", "checkpoint-*.json")) // as of audit.checkpoint_copies
		if err != nil {
			return fmt.Errorf("reading checkpoints in %s: %w", path, err)
		}
		files = append(files, single...)
	}
	for _, f := range files {
		if err := c.readFile(f); err != nil {
			return fmt.Errorf("reading checkpoints: %w", err)
		}
	}
	return nil
}

func (c *Checkpoints) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				// It was being written when the process died, or is being written now.
				c.notes = append(c.notes, fmt.Sprintf("line %d of %s has no end: it was being written; it is ignored", n, path))
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d of %s: %w", n, path, err)
		}
		if len(line) > 0 {
			c.add(line, fmt.Sprintf("line %d of %s", n, path))
		}
	}
}

// readLine reads a line of bounded length. Together with io.EOF it returns what there is of a line
// without an end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return line, err
		case len(line) > audit.MaxCheckpoint:
			return nil, fmt.Errorf("longer than %d bytes: this is not a file of checkpoints", audit.MaxCheckpoint)
		}
	}
}

// ReadTopic reads the checkpoints in Kafka.
func (c *Checkpoints) ReadTopic(ctx context.Context, l *stream.Client) error {
	c.from = FromTopic
	return l.Scan(ctx, stream.Checkpoints, func(r *stream.Record) error {
		c.add(r.Value, "record "+r.Position())
		return nil
	})
}

// add takes in one line.
func (c *Checkpoints) add(line []byte, from string) {
	if audit.IsCosigned(line) {
		c.addCosigned(line, from)
		return
	}
	s, err := audit.ParseCheckpoint(line)
	if err != nil {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is not a checkpoint: %s", from, err)})
		return
	}
	if o := c.seen[s.Hash]; o != nil {
		o.Origin |= c.from
		return
	}
	key, ok := c.keys[s.Signer]
	if !ok {
		c.unknown[pg.Truncate(s.Signer, 64)]++
		return
	}
	if !s.SignedBy(key) {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is a forged checkpoint: it claims to be number %d of signer %s, whose key did not sign it", from, s.Number, s.Signer)})
		return
	}
	if len(c.seen) >= maxCheckpoints {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("more than %d checkpoints: name only the newer files with --checkpoints", maxCheckpoints)})
		return
	}
	found := &origins{c.from}
	c.seen[s.Hash] = found
	c.good++
	if s.Time.After(c.newest) {
		c.newest = s.Time
	}
	c.successions[s.Signer] = append(c.successions[s.Signer], signedNumber{number: s.Number, root: s.TreeHead.Root, before: s.Before(), origins: found, from: from})
	var stated audit.ChainEnd
	if i := slices.IndexFunc(s.Chains, func(e audit.CheckpointChain) bool { return e.At() == audit.StatementsChain }); i >= 0 {
		if b, err := hex.DecodeString(s.Chains[i].Hash); err == nil && len(b) == sha256Size {
			stated = audit.ChainEnd{Rows: s.Chains[i].Rows, Hash: audit.Hash(b)}
		}
	}
	for _, e := range s.Chains {
		b, err := hex.DecodeString(e.Hash)
		if err != nil || len(b) != sha256Size || e.Rows <= 0 {
			continue
		}
		p := &point{hash: audit.Hash(b), time: s.Time, stated: stated, from: []*origins{found}, name: fmt.Sprintf("checkpoint %d of %s", s.Number, s.Time.UTC().Format(time.RFC3339))}
		if r, err := hex.DecodeString(e.Root); err == nil && len(r) == sha256Size {
			p.root = audit.Hash(r)
		}
		c.point(e.At(), e.Rows, p)
	}
}

// check finds missing checkpoints, and those that do not continue the log of their signer. It does so once.
func (c *Checkpoints) check() {
	if c == nil || c.checked {
		return
	}
	c.checked = true
	for _, signer := range slices.Sorted(maps.Keys(c.successions)) {
		marks := c.successions[signer]
		slices.SortStableFunc(marks, func(a, b signedNumber) int { return cmp.Compare(a.number, b.number) })
		if first := marks[0]; first.number > 1 {
			c.notes = append(c.notes, fmt.Sprintf("the checkpoints of signer %s are available from number %d on", signer, first.number))
		}
		for i, m := range marks[1:] {
			c.follow(signer, marks[i], m)
		}
		c.checkWitnessed(signer, marks)
	}
	signers := slices.Concat(slices.Collect(maps.Keys(c.successions)), c.cosigned.Signers())
	if len(signers) == 0 {
		signers = slices.Collect(maps.Keys(c.keys))
	}
	slices.Sort(signers)
	for _, signer := range slices.Compact(signers) {
		c.unwitnessed = append(c.unwitnessed, c.cosigned.Doubts(signer, len(c.successions[signer]) > 0)...)
	}
	for _, signer := range slices.Sorted(maps.Keys(c.unknown)) {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%d checkpoints are signed by %s, a key that is not trusted: they were ignored. "+
			"If it is a recorder's key, name its signing.pub with --public-key", c.unknown[signer], signer)})
	}
}

// follow compares a checkpoint with the one before it in the log of a signer.
func (c *Checkpoints) follow(signer string, before, m signedNumber) {
	switch {
	case m.number == before.number && m.root == before.root:
	case m.number == before.number:
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("signer %s has signed two checkpoints number %d: %s and %s. Two recorders with one key do not share a database, or someone has the key", signer, m.number, before.from, m.from)})
	case m.number > before.number+1:
		missing := fmt.Sprintf("number %d", m.number-1)
		if before.number < m.number-2 {
			missing = fmt.Sprintf("numbers %d to %d", before.number+1, m.number-1)
		}
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("checkpoint %s of signer %s is missing; number %d follows it (%s)", missing, signer, m.number, m.from)})
	case m.before != before.root:
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("checkpoint number %d of signer %s (%s) does not continue the log in which number %d is (%s)", m.number, signer, m.from, before.number, before.from)})
	}
}

// TrustWitnesses sets whose cosignatures count, and how many of them a checkpoint needs. It comes before
// checkpoints are read.
func (c *Checkpoints) TrustWitnesses(quorum int, keys ...note.Verifier) {
	c.cosigned.Trust(quorum, keys...)
}

// Asked takes in the newest checkpoint of a signer that a witness says it has cosigned; nil: none, or it does not say.
// A witness that was not asked, or has not answered (err), may have cosigned later ones than there are.
func (c *Checkpoints) Asked(w note.Verifier, signer string, newest []byte, err error) {
	c.cosigned.Answered(w, signer, newest != nil, err)
	if newest != nil {
		c.AddNote(signer, newest, "the answer of the witness "+w.Name())
	}
}

// addCosigned takes in a line with the signatures of witnesses.
func (c *Checkpoints) addCosigned(line []byte, from string) {
	l, _, err := audit.ParseCosigned(line)
	if err != nil {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is not a cosigned checkpoint: %s", from, err)})
		return
	}
	c.AddNote(l.Signer, []byte(l.Note), from)
}

// AddNote takes in a signed note of a signer's log, with the signatures of witnesses.
func (c *Checkpoints) AddNote(signer string, signed []byte, from string) {
	key, ok := c.keys[signer]
	if !ok || c.cosigned.NoWitness() {
		return // the checkpoint itself says that the key is not trusted
	}
	if err := c.cosigned.Add(signer, key, signed, from); err != nil {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is not a checkpoint of signer %s with the signature of a witness: %s", from, signer, err)})
	}
}

// checkWitnessed compares the log of a signer, in the order of numbers, with what witnesses have cosigned, and
// notes which checkpoints that proves: those with enough cosignatures, and those before them up to a gap.
func (c *Checkpoints) checkWitnessed(signer string, marks []signedNumber) {
	known := map[int64]bool{}
	for _, m := range marks {
		known[m.number] = true
		for root, s := range c.cosigned.Of(signer)[m.number] {
			if root != m.root {
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("the witness %s has cosigned another checkpoint number %d of signer %s (%s) than there is (%s): the checkpoints were replaced, or someone has the key", strings.Join(s.By, ", "), m.number, signer, s.From, m.from)})
			}
		}
	}
	last := marks[len(marks)-1].number
	for size, roots := range c.cosigned.Of(signer) {
		for _, s := range roots {
			if size > last {
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("checkpoints %d to %d of signer %s are missing: the witness %s has cosigned number %d (%s)", last+1, size, signer, strings.Join(s.By, ", "), size, s.From)})
			}
		}
	}
	var number int64 // the witnessed checkpoint that follows, and the root before it
	var before audit.Hash
	for _, m := range slices.Backward(marks) {
		s := c.cosigned.Of(signer)[m.number][m.root]
		switch {
		case s != nil && len(s.By) >= c.cosigned.Quorum() && len(c.cosigned.Of(signer)[m.number]) == 1:
		case number == m.number+1 && before == m.root:
		default:
			continue
		}
		m.origins.Origin |= FromWitness
		number, before = m.number, m.before
	}
}

// Trusted returns the ids of the trusted keys.
func (c *Checkpoints) Trusted() []string {
	var out []string
	for id := range c.keys {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}
