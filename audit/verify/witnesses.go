package verify

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
)

// cosignedRoots are the roots that witnesses have cosigned for one size of a log; honest logs have one.
type cosignedRoots map[audit.Hash]*cosignatures

type cosignatures struct {
	by   []string // names and ids of the keys, sorted
	from string
}

// maxRoots bounds the roots of one size.
const maxRoots = 4

// TrustWitnesses sets whose cosignatures count, and how many of them a checkpoint needs. It comes before
// checkpoints are read.
func (c *Checkpoints) TrustWitnesses(quorum int, keys ...note.Verifier) {
	c.witnesses, c.quorum = keys, max(1, quorum)
}

// Asked takes in the newest checkpoint of a signer that a witness says it has cosigned; nil: none, or it does not say.
// Whoever was not asked, or has not answered (err), may have cosigned later ones than there are.
func (c *Checkpoints) Asked(w note.Verifier, signer string, newest []byte, err error) {
	to := c.answers[signer]
	if to == nil {
		to = map[string]answer{}
		c.answers[signer] = to
	}
	to[witnessID(w.Name(), w.KeyHash())] = answer{newest != nil, err}
	if newest != nil {
		c.AddNote(signer, newest, "the answer of the witness "+w.Name())
	}
}

// answer is what a witness has said about a signer's log.
type answer struct {
	given bool
	err   error
}

func witnessID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// checkAsked finds out whether the log of a signer may have been set back together with its checkpoints. Of those that
// enough witnesses have cosigned, each quorum knows, so as many may be silent as cannot be one.
func (c *Checkpoints) checkAsked(signer string) {
	if len(c.witnesses) == 0 {
		return
	}
	if newest := slices.Sorted(maps.Keys(c.cosigned[signer])); len(newest) > 0 && len(c.successions[signer]) == 0 {
		c.unwitnessed = append(c.unwitnessed, fmt.Sprintf("there is no checkpoint of signer %s, but a witness has cosigned number %d: the checkpoints are gone, or they were not named", signer, newest[len(newest)-1]))
	}
	answered, why := 0, []string{}
	for _, w := range c.witnesses {
		id := witnessID(w.Name(), w.KeyHash())
		switch a, asked := c.answers[signer][id]; {
		case !asked:
			why = append(why, w.Name()+" was not asked, as audit.witnesses has no address of it")
		case a.err != nil:
			why = append(why, a.err.Error())
		case !a.given && c.hasCosigned(signer, id):
			why = append(why, w.Name()+" does not say what it has cosigned last")
		default:
			answered++
		}
	}
	if answered <= len(c.witnesses)-c.quorum {
		c.unwitnessed = append(c.unwitnessed, fmt.Sprintf("witnesses may have cosigned later checkpoints of signer %s than there are: %s. Someone who can write to the database and to the checkpoints could have set both back", signer, strings.Join(why, "; ")))
	}
}

// hasCosigned reports whether there is a signature of a witness on a checkpoint of a signer.
func (c *Checkpoints) hasCosigned(signer, id string) bool {
	for _, roots := range c.cosigned[signer] {
		for _, s := range roots {
			if slices.Contains(s.by, id) {
				return true
			}
		}
	}
	return false
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
	if !ok || len(c.witnesses) == 0 {
		return // the checkpoint itself says that the key is not trusted
	}
	bad := func(why any) {
		c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("%s is not a checkpoint of signer %s with the signature of a witness: %s", from, signer, why)})
	}
	text, ok := audit.NoteText(signed)
	if !ok {
		bad("it is not a signed note")
		return
	}
	head, err := audit.ParseTreeHead(text)
	if err != nil {
		bad(err)
		return
	}
	log, err := audit.LogVerifier(head.Origin, key)
	if err != nil {
		bad(err)
		return
	}
	n, err := note.Open(signed, note.VerifierList(append([]note.Verifier{log}, c.witnesses...)...))
	if err != nil {
		bad(err)
		return
	}
	own, by := false, []string{}
	for _, s := range n.Sigs {
		if s.Name == log.Name() && s.Hash == log.KeyHash() {
			own = true
			continue
		}
		by = append(by, witnessID(s.Name, s.Hash))
	}
	if !own {
		bad("the signer did not sign it")
		return
	}
	c.remember(signer, head, by, from)
}

func (c *Checkpoints) remember(signer string, head audit.TreeHead, by []string, from string) {
	if len(by) == 0 {
		return
	}
	sizes := c.cosigned[signer]
	if sizes == nil {
		sizes = map[int64]cosignedRoots{}
		c.cosigned[signer] = sizes
	}
	roots := sizes[head.Size]
	if roots == nil {
		roots = cosignedRoots{}
		sizes[head.Size] = roots
	}
	have := roots[head.Root]
	if have == nil {
		if len(roots) >= maxRoots {
			return
		}
		have = &cosignatures{from: from}
		roots[head.Root] = have
	}
	have.by = append(have.by, by...)
	slices.Sort(have.by)
	have.by = slices.Compact(have.by)
}

// checkWitnessed compares the log of a signer, in the order of numbers, with what witnesses have cosigned, and
// notes which checkpoints that proves: those with enough cosignatures, and those before them up to a gap.
func (c *Checkpoints) checkWitnessed(signer string, marks []signedNumber) {
	known := map[int64]bool{}
	for _, m := range marks {
		known[m.number] = true
		for root, s := range c.cosigned[signer][m.number] {
			if root != m.root {
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("the witness %s has cosigned another checkpoint number %d of signer %s (%s) than there is (%s): the checkpoints were replaced, or someone has the key", strings.Join(s.by, ", "), m.number, signer, s.from, m.from)})
			}
		}
	}
	last := marks[len(marks)-1].number
	for size, roots := range c.cosigned[signer] {
		for _, s := range roots {
			if size > last {
				c.found(Finding{Reason: Checkpoint, Detail: fmt.Sprintf("checkpoints %d to %d of signer %s are missing: the witness %s has cosigned number %d (%s)", last+1, size, signer, strings.Join(s.by, ", "), size, s.from)})
			}
		}
	}
	var number int64 // the witnessed checkpoint that follows, and the root before it
	var before audit.Hash
	for _, m := range slices.Backward(marks) {
		s := c.cosigned[signer][m.number][m.root]
		switch {
		case s != nil && len(s.by) >= c.quorum && len(c.cosigned[signer][m.number]) == 1:
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
