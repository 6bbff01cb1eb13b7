package verify

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
)

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
