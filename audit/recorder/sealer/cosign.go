package sealer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/witness"
)

// cosigner has the newest checkpoint cosigned by the witnesses. It has a goroutine of its own: a witness that is
// slow or down holds up neither recording nor signing. Only the newest counts, because it proves
// all before it.
type cosigner struct {
	s       *Sealer
	clients []*witness.Client
	fresh   chan *audit.SignedCheckpoint // the newest that was not begun

	mu      sync.Mutex              // held while witnesses are asked
	current *audit.SignedCheckpoint // nil: none
	signed  *note.Note              // with the cosignatures so far
	told    map[string]string       // the last error of each witness, to log it once
}

// retryWitness is the longest pause before witnesses are asked again for the same checkpoint.
const retryWitness = time.Minute

func newCosigner(s *Sealer) *cosigner {
	k := &cosigner{s: s, fresh: make(chan *audit.SignedCheckpoint, 1), told: map[string]string{}}
	for _, w := range s.cfg.Witnesses {
		c, err := witness.NewClient(w)
		if err != nil {
			s.Logger.Error("a witness of audit.witnesses is not asked", "url", w.URL, "error", err)
			continue
		}
		k.clients = append(k.clients, c)
	}
	return k
}

// offer makes a checkpoint the newest.
func (k *cosigner) offer(c *audit.SignedCheckpoint) {
	if len(k.clients) == 0 {
		return
	}
	for {
		select {
		case k.fresh <- c:
			return
		default:
		}
		select {
		case <-k.fresh: // an older one
		default:
		}
	}
}

// run asks the witnesses about each new checkpoint, and again until all have cosigned it or there is a newer
// one, until ctx ends.
func (k *cosigner) run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(time.Second), backoff.WithMaxInterval(retryWitness), backoff.WithMaxElapsedTime(0))
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case c := <-k.fresh:
			k.begin(c)
			wait.Reset()
		case <-again.C:
		case <-ctx.Done():
			return
		}
		if again.Stop(); !k.ask(ctx) {
			again.Reset(wait.NextBackOff())
		}
	}
}

// once asks about the newest checkpoint one time.
func (k *cosigner) once(ctx context.Context) {
	select {
	case c := <-k.fresh:
		k.begin(c)
	default:
	}
	k.ask(ctx)
}

func (k *cosigner) close() {
	for _, c := range k.clients {
		c.Close()
	}
}

// begin makes a checkpoint the current one, unless it is older: the file and the topic both offer it.
func (k *cosigner) begin(c *audit.SignedCheckpoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil && k.current.Number >= c.Number {
		return
	}
	v, err := audit.LogVerifier(c.Origin, k.s.publicKey())
	if err != nil {
		return
	}
	signed, err := note.Open(c.Note, note.VerifierList(v))
	if err != nil {
		return
	}
	k.current, k.signed = c, signed
}

// ask asks the witnesses that have not cosigned the current checkpoint, all at the same time, and writes down
// what they have signed. It reports whether nothing is left to ask.
func (k *cosigner) ask(ctx context.Context) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil {
		return true
	}
	lacking := k.lacking()
	if len(lacking) == 0 {
		return true
	}
	c := k.current
	answers := make([]note.Signature, len(lacking))
	errs := make([]error, len(lacking))
	var all sync.WaitGroup
	for i, w := range lacking {
		all.Go(func() {
			answers[i], errs[i] = w.Cosign(ctx, c.Note, func(ctx context.Context, old int64) ([]audit.Hash, error) { return k.s.prove(ctx, c.Number, old) })
		})
	}
	all.Wait()
	before := len(k.signed.Sigs)
	for i, w := range lacking {
		k.tell(ctx, w.Name(), errs[i])
		if errs[i] == nil {
			k.signed.Sigs = append(k.signed.Sigs, answers[i])
		}
	}
	if len(k.signed.Sigs) > before {
		cosigned, err := note.Sign(k.signed)
		if err == nil {
			err = k.s.publishCosigned(ctx, c, cosigned, len(k.signed.Sigs)-1)
		}
		if err != nil && ctx.Err() == nil {
			k.s.Logger.Warn("the signatures of witnesses could not be written", "number", c.Number, "error", err)
		}
	}
	return len(k.lacking()) == 0
}

// lacking returns the witnesses that have not cosigned the current checkpoint.
func (k *cosigner) lacking() (out []*witness.Client) {
	for _, w := range k.clients {
		has := false
		for _, sig := range k.signed.Sigs {
			has = has || sig.Name == w.Name() && sig.Hash == w.Verifier().KeyHash()
		}
		if !has {
			out = append(out, w)
		}
	}
	return out
}

// tell counts an answer, and logs what is new about a witness.
func (k *cosigner) tell(ctx context.Context, name string, err error) {
	disagrees, refused := errors.AsType[*witness.DisagreesError](err)
	outcome := "ok"
	switch {
	case refused:
		outcome = "refused"
	case err != nil:
		outcome = "failed"
	}
	k.s.Metrics.Cosignatures.WithLabelValues(outcome).Inc()
	said := ""
	if err != nil {
		said = err.Error()
	}
	if ctx.Err() != nil || k.told[name] == said {
		return
	}
	k.told[name] = said
	switch {
	case refused:
		k.s.Logger.Error("a witness refuses to cosign checkpoints: compare with `batchyard audit verify`", "witness", name, "why", disagrees.Why)
	case err != nil:
		k.s.Logger.Warn("a witness did not cosign a checkpoint; asking again", "witness", name, "error", err)
	default:
		k.s.Logger.Info("a witness cosigns checkpoints", "witness", name)
	}
}
