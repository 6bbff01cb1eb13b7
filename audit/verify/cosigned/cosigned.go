// Package cosigned collects what witnesses have cosigned of the logs of checkpoints, and what they say when asked.
package cosigned

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
)

// Roots are the roots that witnesses have cosigned for one size of a log; honest logs have one.
type Roots map[audit.Hash]*Signatures

// Signatures are those of one root.
type Signatures struct {
	By   []string // names and ids of the keys, sorted
	From string
}

// maxRoots bounds the roots of one size.
const maxRoots = 4

// Logs are what is known of the logs of all signers. The zero value trusts no witness.
type Logs struct {
	witnesses []note.Verifier
	quorum    int
	signed    map[string]map[int64]Roots
	answers   map[string]map[string]answer // of witnesses, by signer
}

// Trust sets whose cosignatures count, and how many of them a checkpoint needs.
func (l *Logs) Trust(quorum int, keys ...note.Verifier) {
	l.witnesses, l.quorum = keys, max(1, quorum)
}

// NoWitness reports whether no witness is trusted.
func (l *Logs) NoWitness() bool { return len(l.witnesses) == 0 }

// Quorum returns how many cosignatures a checkpoint needs.
func (l *Logs) Quorum() int { return l.quorum }

// Of returns what was cosigned of a signer's log, by size.
func (l *Logs) Of(signer string) map[int64]Roots { return l.signed[signer] }

// Signers returns those of whose logs something was cosigned.
func (l *Logs) Signers() []string { return slices.Collect(maps.Keys(l.signed)) }

// Add takes in a signed note of a signer's log, with the signatures of witnesses.
func (l *Logs) Add(signer string, key ed25519.PublicKey, signed []byte, from string) error {
	text, ok := audit.NoteText(signed)
	if !ok {
		return errors.New("it is not a signed note")
	}
	head, err := audit.ParseTreeHead(text)
	if err != nil {
		return err
	}
	log, err := audit.LogVerifier(head.Origin, key)
	if err != nil {
		return err
	}
	n, err := note.Open(signed, note.VerifierList(append([]note.Verifier{log}, l.witnesses...)...))
	if err != nil {
		return err
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
		return errors.New("the signer did not sign it")
	}
	l.remember(signer, head, by, from)
	return nil
}

func (l *Logs) remember(signer string, head audit.TreeHead, by []string, from string) {
	if len(by) == 0 {
		return
	}
	if l.signed == nil {
		l.signed = map[string]map[int64]Roots{}
	}
	sizes := l.signed[signer]
	if sizes == nil {
		sizes = map[int64]Roots{}
		l.signed[signer] = sizes
	}
	roots := sizes[head.Size]
	if roots == nil {
		roots = Roots{}
		sizes[head.Size] = roots
	}
	have := roots[head.Root]
	if have == nil {
		if len(roots) >= maxRoots {
			return
		}
		have = &Signatures{From: from}
		roots[head.Root] = have
	}
	have.By = append(have.By, by...)
	slices.Sort(have.By)
	have.By = slices.Compact(have.By)
}

// Answered notes that a witness was asked for the newest checkpoint of a signer that it has cosigned.
func (l *Logs) Answered(w note.Verifier, signer string, given bool, err error) {
	if l.answers == nil {
		l.answers = map[string]map[string]answer{}
	}
	if l.answers[signer] == nil {
		l.answers[signer] = map[string]answer{}
	}
	l.answers[signer][witnessID(w.Name(), w.KeyHash())] = answer{given, err}
}

// answer is what a witness has said about a signer's log.
type answer struct {
	given bool
	err   error
}

func witnessID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// Doubts says why the log of a signer may have been set back together with its checkpoints, of which there are some or none. Of
// those that enough witnesses have cosigned, each quorum knows, so as many may be silent as cannot be one.
func (l *Logs) Doubts(signer string, checkpoints bool) (all []string) { //nolint:revive // what there is
	if l.NoWitness() {
		return nil
	}
	if newest := slices.Sorted(maps.Keys(l.signed[signer])); len(newest) > 0 && !checkpoints {
		all = append(all, fmt.Sprintf("there is no checkpoint of signer %s, but a witness has cosigned number %d: the checkpoints are gone, or they were not named", signer, newest[len(newest)-1]))
	}
	answered, why := 0, []string{}
	for _, w := range l.witnesses {
		id := witnessID(w.Name(), w.KeyHash())
		switch a, asked := l.answers[signer][id]; {
		case !asked:
			why = append(why, w.Name()+" was not asked, as audit.witnesses has no address of it")
		case a.err != nil:
			why = append(why, a.err.Error())
		case !a.given && l.hasCosigned(signer, id):
			why = append(why, w.Name()+" does not say what it has cosigned last")
		default:
			answered++
		}
	}
	if answered <= len(l.witnesses)-l.quorum {
		all = append(all, fmt.Sprintf("witnesses may have cosigned later checkpoints of signer %s than there are: %s. Someone who can write to the database and to the checkpoints could have set both back", signer, strings.Join(why, "; ")))
	}
	return all
}

// hasCosigned reports whether there is a signature of a witness on a checkpoint of a signer.
func (l *Logs) hasCosigned(signer, id string) bool {
	for _, roots := range l.signed[signer] {
		for _, s := range roots {
			if slices.Contains(s.By, id) {
				return true
			}
		}
	}
	return false
}
