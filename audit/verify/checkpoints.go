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
	"time"

	"github.com/batchyard/batchyard/audit"
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
	seen        map[audit.Hash]bool
	successions map[string][]signedNumber // by signer

	unknown  map[string]int // number of checkpoints by untrusted keys
	findings []Finding
	count    int64 // number of all findings
	notes    []string
	newest   time.Time
	good     int
}

// signedNumber is the place of a checkpoint in the succession of its signer.
type signedNumber struct {
	number int64
	hash   audit.Hash
	prev   audit.Hash
	first  bool // it names no checkpoint before it
	from   string
}

// point is what a checkpoint says about a row.
type point struct {
	hash    audit.Hash
	time    time.Time
	name    string // of the checkpoint
	matched bool
	differs *RowRef // a row with that number and another hash
	other   *point  // a checkpoint with another hash of the row; nil: none
}

// NewCheckpoints returns an empty collection that trusts the given keys.
func NewCheckpoints(keys []ed25519.PublicKey) *Checkpoints {
	c := &Checkpoints{keys: map[string]ed25519.PublicKey{}, points: map[audit.TopicPartition]map[int64]*point{}, seen: map[audit.Hash]bool{}, successions: map[string][]signedNumber{}, unknown: map[string]int{}}
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
func (c *Checkpoints) Read(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading checkpoints: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "checkpoints*.jsonl")); err != nil {
			return fmt.Errorf("reading checkpoints in %s: %w", path, err)
		}
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
	return l.Scan(ctx, stream.Checkpoints, func(r *stream.Record) error {
		c.add(r.Value, "record "+r.Position())
		return nil
	})
}

// add takes in one checkpoint.
func (c *Checkpoints) add(line []byte, from string) {
	s, err := audit.ParseCheckpoint(line)
	if err != nil {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is not a checkpoint: %s", from, err)})
		return
	}
	if c.seen[s.Hash] {
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
	c.seen[s.Hash] = true
	c.good++
	if s.Time.After(c.newest) {
		c.newest = s.Time
	}
	m := signedNumber{number: s.Number, hash: s.Hash, first: s.Prev == "", from: from}
	if b, err := hex.DecodeString(s.Prev); err == nil && len(b) == len(m.prev) {
		m.prev = audit.Hash(b)
	}
	c.successions[s.Signer] = append(c.successions[s.Signer], m)
	for _, e := range s.Chains {
		if b, err := hex.DecodeString(e.Hash); err == nil && len(b) == sha256Size && e.Rows > 0 {
			c.point(audit.TopicPartition{Topic: e.Topic, Partition: e.Partition}, e.Rows, &point{hash: audit.Hash(b), time: s.Time, name: fmt.Sprintf("checkpoint %d of %s", s.Number, s.Time.UTC().Format(time.RFC3339))})
		}
	}
}

const sha256Size = len(audit.Hash{})

// point keeps what a checkpoint says about a row.
func (c *Checkpoints) point(at audit.TopicPartition, seq int64, p *point) {
	of := c.points[at]
	if of == nil {
		of = map[int64]*point{}
		c.points[at] = of
	}
	for have := of[seq]; have != nil; have = have.other {
		if have.hash == p.hash {
			if p.time.After(have.time) {
				have.time, have.name = p.time, p.name
			}
			return
		}
		if have.other == nil {
			have.other = p
			return
		}
	}
	of[seq] = p
	if len(of) > 2*maxPoints {
		seqs := slices.Sorted(maps.Keys(of))
		for _, old := range seqs[:len(seqs)-maxPoints] {
			delete(of, old)
		}
	}
}

// check finds missing checkpoints: those that another names as the one before it, if older ones of
// the signer are available.
func (c *Checkpoints) check() {
	for signer, marks := range c.successions {
		slices.SortFunc(marks, func(a, b signedNumber) int { return cmp.Compare(a.number, b.number) })
		for i, m := range marks {
			switch {
			case m.first && m.number != 1:
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s, number %d of signer %s, does not name the one before it", m.from, m.number, signer)})
			case m.first || c.seen[m.prev]:
			case i == 0 || marks[0].number == m.number:
				c.notes = append(c.notes, fmt.Sprintf("the checkpoints of signer %s are available from number %d on", signer, m.number))
			default:
				missing := fmt.Sprintf("number %d", m.number-1)
				if before := marks[i-1].number; before < m.number-2 {
					missing = fmt.Sprintf("numbers %d to %d", before+1, m.number-1)
				}
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("checkpoint %s of signer %s is missing; number %d follows it (%s)", missing, signer, m.number, m.from)})
			}
		}
	}
	for _, signer := range slices.Sorted(maps.Keys(c.unknown)) {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%d checkpoints are signed by %s, a key that is not trusted: they were ignored. "+
			"If it is a recorder's key, name its signing.pub with --public-key", c.unknown[signer], signer)})
	}
}

// compare notes whether a row is as the checkpoints say.
func (c *chainCheck) compare(seq int64, sum audit.Hash, ref func() *RowRef) {
	for p := c.points[seq]; p != nil; p = p.other {
		switch {
		case p.hash == sum:
			p.matched = true
		case p.differs == nil:
			p.differs = ref()
		}
	}
}

// judgePoints compares a chain with what was signed. Differences that findings about the chain
// itself explain are not reported; what remains was rewritten.
func (c *chainCheck) judgePoints(from *Checkpoints, standby bool) {
	for _, s := range c.all() { // the ends of what the retention dropped
		for _, k := range []link{{s.first - 1, s.prev}, {s.last, s.hash}} {
			for p := c.points[k.seq]; p != nil; p = p.other {
				p.matched = p.matched || p.hash == k.hash
			}
		}
	}
	if c.from == 0 && c.end.Rows > 0 { // no row of it was read
		c.compare(c.end.Rows, c.end.Hash, func() *RowRef { return &RowRef{Position: "audit_chains", Seq: c.end.Rows} })
	}
	c.settle(from)
	good := int64(0)
	for _, seq := range slices.Sorted(maps.Keys(c.points)) {
		p := c.points[seq]
		switch {
		case p.matched:
			good, c.signed, c.signedAt = seq, seq, p.time
		case seq > c.end.Rows && !standby:
			last := slices.Max(slices.Collect(maps.Keys(c.points))) // the points between say the same about fewer rows
			if !c.explains(c.end.Rows+1, last) {
				c.found(Finding{Reason: Rewritten, Seq: c.end.Rows + 1, To: last,
					Detail: fmt.Sprintf("%s says that the chain has %d rows, but it ends at row %d", c.points[last].name, last, c.end.Rows)})
			}
			return
		case p.differs != nil && !c.explains(good+1, seq):
			f := Finding{Reason: Rewritten, Seq: good + 1, Row: p.differs,
				Detail: fmt.Sprintf("the chain is consistent in itself, but %s has another hash of row %d: it was rewritten", p.name, seq)}
			if f.Detail += ", starting at one of these rows"; good > 0 {
				f.Detail += fmt.Sprintf("; row %d is as signed", good)
			}
			if seq > good+1 {
				f.To = seq
			}
			c.found(f)
			return // all that follow differ, too
		}
	}
}

// judgeCheckpoints reports what is wrong with the checkpoints themselves, and chains that they have
// and the database does not.
func (v *verifier) judgeCheckpoints() {
	c := v.o.Checkpoints
	if c == nil {
		v.report.note("no checkpoints were available: a chain that was rewritten as a whole would not be noticed")
		return
	}
	c.check()
	v.report.Checkpoints, v.report.Signers = c.good, slices.Sorted(maps.Keys(c.successions))
	if c.good == 0 {
		v.report.note("no checkpoints were available: a chain that was rewritten as a whole would not be noticed")
	} else if age := v.report.Time.Sub(c.newest); age > 3*time.Hour {
		v.report.note("the newest checkpoint is from %s: later ones were removed, or no recorder wrote any", c.newest.UTC().Format(time.RFC3339))
	}
	for at, points := range c.points {
		if v.chains[at] == nil && !v.standby {
			last := slices.Max(slices.Collect(maps.Keys(points)))
			v.report.add(Finding{Reason: Rewritten, Topic: at.Topic, Partition: at.Partition, Seq: 1, To: last,
				Detail: fmt.Sprintf("%s says that the chain has %d rows, but audit_chains does not have it", points[last].name, last)})
		}
	}
	for _, f := range c.findings {
		v.report.add(f)
	}
	v.report.Count += c.count - int64(len(c.findings))
	v.report.Notes = append(v.report.Notes, c.notes...)
}
