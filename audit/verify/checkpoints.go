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
	seen        map[audit.Hash]*origins
	from        Origin                    // of what is being read
	successions map[string][]signedNumber // by signer

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
	{WithDatabase, FromDirectory | FromTopic | FromCopy},
	{WithDirectory, FromTopic | FromCopy},
	{WithKafka, FromCopy},
}

// level is how far a chain is proven against an attacker.
type level struct {
	rows int64
	at   time.Time
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
	name    string     // of the checkpoint
	from    []*origins // of the checkpoints that say so, at most maxOrigins
	matched bool
	differs *RowRef // a row with that number and another hash
	other   *point  // a checkpoint with another hash of the row; nil: none
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

// add takes in one checkpoint.
func (c *Checkpoints) add(line []byte, from string) {
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
	m := signedNumber{number: s.Number, hash: s.Hash, first: s.Prev == "", from: from}
	if b, err := hex.DecodeString(s.Prev); err == nil && len(b) == len(m.prev) {
		m.prev = audit.Hash(b)
	}
	c.successions[s.Signer] = append(c.successions[s.Signer], m)
	for _, e := range s.Chains {
		if b, err := hex.DecodeString(e.Hash); err == nil && len(b) == sha256Size && e.Rows > 0 {
			c.point(audit.TopicPartition{Topic: e.Topic, Partition: e.Partition}, e.Rows, &point{hash: audit.Hash(b), time: s.Time, from: []*origins{found}, name: fmt.Sprintf("checkpoint %d of %s", s.Number, s.Time.UTC().Format(time.RFC3339))})
		}
	}
}

const sha256Size = len(audit.Hash{})

// maxOrigins bounds the checkpoints that are remembered for a row: many say the same while nothing is
// recorded.
const maxOrigins = 64

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
			if len(have.from) < maxOrigins {
				have.from = append(have.from, p.from...)
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
			case m.first || c.seen[m.prev] != nil:
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

// signedRow is what a checkpoint says about the row with a number.
type signedRow struct {
	*point
	seq int64
}

// judgePoints compares a chain with what was signed: each checkpoint on its own, because after a
// rollback the later ones still guard what follows. Differences that findings about the chain itself
// explain are not reported; what remains was rewritten.
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
	all := make([]signedRow, 0, len(c.points))
	for seq, p := range c.points {
		all = append(all, signedRow{p, seq})
	}
	slices.SortFunc(all, func(a, b signedRow) int { return cmp.Or(a.time.Compare(b.time), cmp.Compare(a.seq, b.seq)) })
	var bad []signedRow // consecutive ones that contradict the chain
	for _, s := range all {
		wrong := !s.matched && (s.seq > c.end.Rows && !standby || s.seq <= c.end.Rows && s.differs != nil)
		if len(bad) > 0 && (s.matched || wrong && s.seq < bad[len(bad)-1].seq) {
			c.contradicted(bad)
			bad = nil
		}
		switch {
		case wrong:
			bad = append(bad, s)
		case s.matched:
			c.take(s)
		}
	}
	if len(bad) > 0 {
		c.contradicted(bad)
	}
}

// take notes that a row is as a checkpoint says, and with it all rows before.
func (c *chainCheck) take(s signedRow) {
	if s.seq >= c.signed {
		c.signed, c.signedAt = s.seq, s.time
	}
	var from Origin
	for _, o := range s.from {
		from |= o.Origin
	}
	for i, a := range attackers {
		if from&a.trusted != 0 && s.seq >= c.proven[i].rows {
			c.proven[i] = level{s.seq, s.time}
		}
	}
}

// contradicted reports checkpoints that contradict the chain, one after the other.
func (c *chainCheck) contradicted(bad []signedRow) {
	first, last, good := bad[0], bad[len(bad)-1], int64(0)
	for seq, p := range c.points {
		if p.matched && seq < first.seq {
			good = max(good, seq)
		}
	}
	from := min(good, c.end.Rows) + 1
	if c.wrongFrom == 0 || from < c.wrongFrom {
		c.wrongFrom = from
	}
	many := ""
	if len(bad) > 1 {
		many = fmt.Sprintf("; %d checkpoints contradict it, the last is %s", len(bad), last.name)
	}
	if first.seq > c.end.Rows {
		if top := last.seq; !c.explains(c.end.Rows+1, top) {
			c.found(Finding{Reason: Rewritten, Seq: c.end.Rows + 1, To: top,
				Detail: fmt.Sprintf("%s says that the chain has %d rows, but it ends at row %d", last.name, top, c.end.Rows) + many})
		}
		return
	}
	if c.explains(good+1, first.seq) {
		return
	}
	f := Finding{Reason: Rewritten, Seq: good + 1, Row: first.differs,
		Detail: fmt.Sprintf("the chain is consistent in itself, but %s has another hash of row %d: it was rewritten, starting at one of these rows", first.name, first.seq)}
	if good > 0 {
		f.Detail += fmt.Sprintf("; row %d is as signed", good)
	}
	if f.Detail += many; first.seq > good+1 {
		f.To = first.seq
	}
	c.found(f)
}
