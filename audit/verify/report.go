package verify

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/audit"
)

// Reason is the kind of a finding.
type Reason string

// The reasons.
const (
	Changed    Reason = "changed"    // the content of a row is not what was recorded
	Missing    Reason = "missing"    // a row is missing
	Moved      Reason = "moved"      // a row is in the place of another
	Inserted   Reason = "inserted"   // no recorder wrote the row
	Rewritten  Reason = "rewritten"  // the chain is consistent in itself but is not the one that was signed
	Checkpoint Reason = "checkpoint" // a checkpoint is forged or missing
	Unrecorded Reason = "unrecorded" // records were gone before they were recorded; the row says which
	Definition Reason = "definition" // a table, view, function or trigger is not as the migrations define it
	Statement  Reason = "statement"  // a statement is forged or missing
)

// GapKind is the kind of something that could not be proven.
type GapKind string

// The kinds of gaps. GapKinds lists what they mean.
const (
	GapKeys        GapKind = "keys"
	GapCheckpoints GapKind = "checkpoints"
	GapTail        GapKind = "tail"
	GapCopies      GapKind = "copies"
	GapWitness     GapKind = "witness"
	GapTrees       GapKind = "trees"
	GapRecovery    GapKind = "recovery"
	GapPeriod      GapKind = "period"
	GapDropped     GapKind = "dropped"
	GapDefinitions GapKind = "definitions"
	GapResults     GapKind = "results"
	GapRollups     GapKind = "rollups"
)

// GapKinds are all kinds, with what cannot be proven.
var GapKinds = []struct {
	Kind    GapKind
	Meaning string
}{
	{GapKeys, "there is no trusted key: someone who can write to the database could have rewritten everything"},
	{GapCheckpoints, "no checkpoint covers a chain"},
	{GapTail, "rows were recorded after the newest checkpoint, so only their chain protects them"},
	{GapCopies, "checkpoints come from the checkpoint directory only, so someone who can write there could have replaced them"},
	{GapWitness, "no witness has cosigned a checkpoint and no copy comes from outside, so someone who can write to Kafka could have replaced them; or a witness could not be asked for the newest that it has cosigned"},
	{GapTrees, "the Merkle trees could not be compared with the rows: rows are too scattered on disk"},
	{GapRecovery, "Postgres had lost rows that it had confirmed, and they were recorded again: checkpoints of before do not hold for what follows; or what says so was deleted from stream_breaks"},
	{GapPeriod, "older rows were not read because of --since"},
	{GapDropped, "rows were dropped sooner than they should have been, or before drops were signed, or had to prove offsets"},
	{GapDefinitions, "the definitions of tables and views could not be compared with the migrations"},
	{GapResults, "rows of results, tasks, callbacks or jobs have no digest or event in the log that they could be compared with"},
	{GapRollups, "rollups count rows that the log no longer has"},
}

// Gap is something that could not be proven, and why.
type Gap struct {
	Kind   GapKind `json:"kind"`
	Detail string  `json:"detail"`
}

// Attacker says where someone who wants to hide something can write. The proof has to withstand each of them; each can
// write to more places than the one before.
type Attacker string

// The attackers.
const (
	WithDatabase  Attacker = "database"
	WithDirectory Attacker = "database and checkpoint directory"
	WithKafka     Attacker = "database, checkpoint directory and Kafka"
)

// Proof says up to when the log is proven against an attacker.
type Proof struct {
	Against Attacker  `json:"against"`
	Proven  bool      `json:"proven"`
	Until   time.Time `json:"until,omitzero"` // time of the checkpoint that proves the chain that is proven least far
	Rows    int64     `json:"rows"`           // number of rows that are proven
	Missing int64     `json:"unproven_rows"`
	Why     string    `json:"why,omitempty"` // it is not proven
}

// Verdict is the outcome in a word.
type Verdict string

// The verdicts.
const (
	Well     Verdict = "well"     // nothing is wrong, and everything is proven
	Tampered Verdict = "tampered" // there are findings
	Unproven Verdict = "unproven" // nothing is known to be wrong, but not everything is proven
)

// Verdict returns the outcome; gaps of the kinds in allowed do not count.
func (r *Report) Verdict(allowed ...GapKind) Verdict {
	if !r.OK() {
		return Tampered
	}
	for _, g := range r.Gaps {
		if !slices.Contains(allowed, g.Kind) {
			return Unproven
		}
	}
	return Well
}

// gap adds something that could not be proven.
func (r *Report) gap(kind GapKind, format string, args ...any) {
	if len(r.Gaps) < 64*maxFindings {
		r.Gaps = append(r.Gaps, Gap{kind, fmt.Sprintf(format, args...)})
	}
}

// RowRef names a row of the audit log.
type RowRef struct {
	Position string    `json:"position"` // topic/partition@offset#index
	Seq      int64     `json:"chain_seq,omitempty"`
	Time     time.Time `json:"time,omitzero"`
	Tenant   string    `json:"tenant,omitempty"`
	Action   string    `json:"action,omitempty"`
	Task     string    `json:"task_id,omitempty"`
}

func (r *RowRef) String() string {
	s := r.Position
	if r.Action != "" { // else only its position is known
		s += " of " + r.Time.Format(time.RFC3339Nano) + ", " + r.Action
	}
	if r.Task != "" {
		s += " of task " + r.Tenant + "/" + r.Task
	}
	return s
}

// Finding is something that is wrong.
type Finding struct {
	Reason    Reason  `json:"reason"`
	Topic     string  `json:"topic,omitempty"`
	Partition int32   `json:"partition"`
	Seq       int64   `json:"chain_seq,omitempty"` // first row that it is about
	To        int64   `json:"to_seq,omitempty"`    // last row, if there are several
	Row       *RowRef `json:"row,omitempty"`
	Detail    string  `json:"detail"`
}

// Chain returns the chain of the finding.
func (f *Finding) Chain() string { return f.Topic + "/" + strconv.Itoa(int(f.Partition)) }

// Rows returns the numbers of the rows that the finding is about.
func (f *Finding) Rows() string {
	switch {
	case f.Seq == 0:
		return ""
	case f.To > f.Seq:
		return fmt.Sprintf("%d to %d", f.Seq, f.To)
	}
	return strconv.FormatInt(f.Seq, 10)
}

// ChainReport is what was found about one chain.
type ChainReport struct {
	Topic      string    `json:"topic"`
	Partition  int32     `json:"partition"`
	Rows       int64     `json:"rows"`                 // in its life, as audit_chains has it
	From       int64     `json:"from"`                 // first row that was verified; 0: none was read
	Hash       string    `json:"hash"`                 // of the last row, as audit_chains has it
	Read       int64     `json:"read"`                 // number of rows that were read
	Signed     int64     `json:"signed"`               // up to this row it matches a checkpoint; 0: no checkpoint has it
	SignedAt   time.Time `json:"signed_at,omitzero"`   // time of that checkpoint
	Findings   int64     `json:"findings"`             // number of findings
	First      *Finding  `json:"first,omitempty"`      // the first finding along the chain
	Unfinished bool      `json:"unfinished,omitempty"` // there are more findings than were examined

	// Contradicted is the first row that checkpoints contradict, of the rows after the last that they agree
	// on; 0: none.
	Contradicted int64 `json:"contradicted,omitempty"`
}

// Report is the outcome of a verification.
type Report struct {
	Time        time.Time     `json:"time"` // of the snapshot, by the clock of the database
	Since       time.Time     `json:"since,omitzero"`
	Rows        int64         `json:"rows"`    // number of rows that were read
	Dropped     int64         `json:"dropped"` // rows that the retention has dropped
	Chains      []ChainReport `json:"chains"`
	Checkpoints int           `json:"checkpoints"` // number with valid signatures by trusted keys
	Signers     []string      `json:"signers,omitempty"`
	Findings    []Finding     `json:"findings"` // along each chain; bounded, unlike Count
	Count       int64         `json:"count"`    // number of all findings
	Notes       []string      `json:"notes,omitempty"`
	Gaps        []Gap         `json:"unproven"`
	Proofs      []Proof       `json:"proven"`
	Statements  int64         `json:"statements"` // number with valid signatures by trusted keys

	lostStatements int64                         // the first that a checkpoint has and the database does not; 0: none
	holes          int64                         // rows that say what was never recorded
	again          int64                         // rows that say that Postgres had lost what it had confirmed
	lostChains     map[audit.TopicPartition]bool // that checkpoints have and the database does not
}

// maxFindings bounds the findings per chain in a report.
const maxFindings = 100

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return r.Count == 0 }

func (r *Report) add(f Finding) {
	r.Count++
	if len(r.Findings) < 64*maxFindings {
		r.Findings = append(r.Findings, f)
	}
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// found keeps the first findings along a chain and counts all.
func (c *chainCheck) found(f Finding) {
	f.Topic, f.Partition = c.at.Topic, c.at.Partition
	c.count++
	if len(c.findings) >= 4*maxFindings {
		sortFindings(c.findings)
		c.findings = c.findings[:maxFindings]
	}
	c.findings = append(c.findings, f)
}

func sortFindings(fs []Finding) {
	slices.SortStableFunc(fs, func(a, b Finding) int { return cmp.Compare(a.Seq, b.Seq) })
}

// explains reports whether there is a finding between two rows, other than that checkpoints contradict
// them, which is reported by itself each time, or that a statement about them is wrong.
func (c *chainCheck) explains(from, to int64) bool {
	return slices.ContainsFunc(c.findings, func(f Finding) bool {
		return f.Reason != Rewritten && f.Reason != Statement && f.Seq <= to && max(f.Seq, f.To) >= from
	})
}

// report adds the chain to a report.
func (c *chainCheck) report(r *Report) {
	c.count += c.holeCount
	r.holes += c.holeCount
	r.again += c.again
	c.findings = append(c.findings, c.holes...)
	sortFindings(c.findings)
	out := ChainReport{Topic: c.at.Topic, Partition: c.at.Partition, Rows: c.end.Rows, From: c.from, Read: c.read, Hash: hex.EncodeToString(c.end.Hash[:]), Contradicted: c.wrongFrom,
		Signed: c.signed, SignedAt: c.signedAt, Findings: c.count, Unfinished: c.count > int64(len(c.findings))}
	if len(c.findings) > 0 {
		first := c.findings[0]
		out.First = &first
	}
	r.Chains = append(r.Chains, out)
	r.Count += c.count
	r.Findings = append(r.Findings, c.findings[:min(len(c.findings), maxFindings)]...)
}

// AcceptRestore returns what an operator accepts who declares that the database that was verified is a
// backup: from which rows on older checkpoints no longer count, and where the chains end now. An error
// says why a restore does not explain the report.
func (r *Report) AcceptRestore(reason string) (*audit.AcceptedBackup, error) {
	if !r.Since.IsZero() {
		return nil, errors.New("only a part of the log was verified")
	}
	if r.Checkpoints == 0 {
		return nil, errors.New("there are no checkpoints that the restored log could contradict")
	}
	for _, f := range r.Findings {
		if f.Reason != Rewritten && (f.Reason != Statement || f.Topic != audit.StatementsChain.Topic || r.lostStatements == 0) && f.Reason != Unrecorded {
			return nil, fmt.Errorf("a restore does not explain this finding: %s %s: %s", f.Reason, f.Chain(), f.Detail)
		}
	}
	b := &audit.AcceptedBackup{Reason: reason}
	add := func(at audit.TopicPartition, rows int64, hash string, from int64) {
		b.Chains = append(b.Chains, audit.AcceptedChain{CheckpointChain: audit.CheckpointChain{Topic: at.Topic, Partition: at.Partition, Rows: rows, Hash: hash}, From: from})
	}
	contradicted := r.lostStatements > 0 || len(r.lostChains) > 0
	for _, c := range r.Chains {
		contradicted = contradicted || c.Contradicted > 0
		add(audit.TopicPartition{Topic: c.Topic, Partition: c.Partition}, c.Rows, c.Hash, cmp.Or(c.Contradicted, c.Rows+1))
	}
	for at := range r.lostChains {
		add(at, 0, "", 1)
	}
	if r.lostStatements > 0 {
		add(audit.StatementsChain, 0, "", r.lostStatements)
	}
	if !contradicted {
		return nil, errors.New("no checkpoint contradicts the log: there is nothing to accept")
	}
	slices.SortFunc(b.Chains, func(x, y audit.AcceptedChain) int {
		return cmp.Or(strings.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition))
	})
	return b, nil
}
