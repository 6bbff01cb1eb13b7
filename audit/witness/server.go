package witness

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/batchyard/batchyard/audit"
)

// Config says who a witness is, and which logs it knows.
type Config struct {
	Name   string             // of its key, as a URL without a scheme
	Key    ed25519.PrivateKey // of the witness; no log and no other witness has it
	Dir    string             // keeps the newest checkpoint of each log
	Logs   []string           // keys of logs as text ("vkeys"); the name of a key is the origin
	Logger *slog.Logger
	Now    func() time.Time // nil: the system's clock
}

// Server is a witness. It implements http.Handler.
type Server struct {
	mux    *http.ServeMux
	signer note.Signer
	logs   map[string]*watched // by origin
	store  *store
	logger *slog.Logger
	slots  chan struct{} // bounds the requests at a time
}

// maxAtOnce bounds the requests that are worked on at a time; others wait.
const maxAtOnce = 64

// watched is a log that a witness knows.
type watched struct {
	keys   []note.Verifier
	byHash string // the origin's SHA-256 in hex

	mu     sync.Mutex     // held from the comparison with newest until the next one is stored
	newest audit.TreeHead // that was cosigned; size 0: none
	note   []byte         // the newest, with the cosignature
}

// New returns a witness with the state that is in its directory. No other process may use that: the
// lock is released by Close.
func New(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if _, err := audit.WitnessKey(cfg.Name, cfg.Key.Public().(ed25519.PublicKey)); err != nil { //nolint:errcheck // Ed25519 keys have no other
		return nil, err
	}
	s := &Server{mux: http.NewServeMux(), signer: audit.CosignatureSigner(cfg.Name, cfg.Key, cfg.Now), logs: map[string]*watched{}, logger: cfg.Logger, slots: make(chan struct{}, maxAtOnce)}
	for _, text := range cfg.Logs {
		v, err := note.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not the key of a log: copy the content of log.vkey in the recorder's audit.checkpoint_dir: %w", audit.Short(text), err)
		}
		w := s.logs[v.Name()]
		if w == nil {
			sum := sha256.Sum256([]byte(v.Name()))
			w = &watched{byHash: hex.EncodeToString(sum[:])}
			s.logs[v.Name()] = w
		}
		w.keys = append(w.keys, v)
	}
	var err error
	if s.store, err = openStore(cfg.Dir); err != nil {
		return nil, err
	}
	for origin, w := range s.logs {
		if w.newest, w.note, err = s.store.load(w.byHash); err == nil && w.note != nil && w.newest.Origin != origin {
			err = fmt.Errorf("it is about %q", audit.Short(w.newest.Origin))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reading what was cosigned of %s: %w; restore %s from a backup that is not older than its last cosignature", origin, err, s.store.path(w.byHash)), s.store.close())
		}
	}
	s.mux.HandleFunc("POST "+addPath, s.add)
	s.mux.HandleFunc("GET /{origin}/checkpoint", s.checkpoint)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	return s, nil
}

// Close releases the directory.
func (s *Server) Close() error { return s.store.close() }

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
		s.mux.ServeHTTP(w, r)
	case <-r.Context().Done():
	}
}

// refusal is why a checkpoint is not cosigned.
type refusal struct {
	status int
	why    string
	size   int64 // of 409: what the witness knows
}

func (r *refusal) Error() string { return r.why }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, why: fmt.Sprintf(format, args...)}
}

func (s *Server) add(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, fmt.Sprintf("the request has more than %d bytes, or broke off", maxRequest), http.StatusBadRequest)
		return
	}
	head, signature, err := s.Cosign(body)
	no, refused := errors.AsType[*refusal](err)
	switch {
	case err == nil:
		s.logger.Info("cosigned", "origin", head.Origin, "size", head.Size)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(signature)
	case !refused:
		s.logger.Error("a checkpoint was not cosigned, because it could not be stored", "origin", head.Origin, "size", head.Size, "error", err)
		http.Error(w, "the witness could not store the checkpoint: try again later", http.StatusInternalServerError)
	case no.status == http.StatusConflict:
		w.Header().Set("Content-Type", sizeType)
		w.WriteHeader(no.status)
		_, _ = fmt.Fprintf(w, "%d\n", no.size)
	default:
		if no.status == http.StatusUnprocessableEntity {
			s.logger.Error("a log shows another history than before: keep the request as evidence", "origin", head.Origin, "size", head.Size, "why", no.why, "request", string(body))
		}
		http.Error(w, no.why, no.status)
	}
}

// Cosign checks a request of add-checkpoint and returns the line of the cosignature. If the process dies before
// it returns, the checkpoint may be stored without that anyone has the cosignature: the log then asks again.
func (s *Server) Cosign(body []byte) (head audit.TreeHead, signature []byte, err error) {
	req, err := parseRequest(body)
	if err != nil {
		return head, nil, refuse(http.StatusBadRequest, "malformed request: %s", err)
	}
	text, ok := audit.NoteText(req.note)
	if !ok {
		return head, nil, refuse(http.StatusBadRequest, "the checkpoint is not a signed note")
	}
	if head, err = audit.ParseTreeHead(text); err != nil {
		return head, nil, refuse(http.StatusBadRequest, "the note is %s", err)
	}
	log := s.logs[head.Origin]
	if log == nil {
		return head, nil, refuse(http.StatusNotFound, "unknown log %q: the operator of the witness has to add its key with --log", audit.Short(head.Origin))
	}
	signed, err := note.Open(req.note, note.VerifierList(log.keys...))
	if err != nil {
		return head, nil, refuse(statusOf(err), "no valid signature by a known key of %s: %s", head.Origin, err)
	}
	if req.old > head.Size {
		return head, nil, refuse(http.StatusBadRequest, "the old size %d is larger than the checkpoint's, %d", req.old, head.Size)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if req.old != log.newest.Size {
		return head, nil, &refusal{status: http.StatusConflict, why: "another size was cosigned last", size: log.newest.Size}
	}
	if err := consistent(req, log.newest, head); err != nil {
		return head, nil, err
	}
	signed.UnverifiedSigs = nil // not ours to spread
	cosigned, err := note.Sign(signed, s.signer)
	if err != nil {
		return head, nil, refuse(http.StatusBadRequest, "the note cannot be cosigned: %s", err)
	}
	if err := s.store.save(log.byHash, cosigned); err != nil {
		return head, nil, err
	}
	log.newest, log.note = head, cosigned
	lines := strings.SplitAfter(strings.TrimSuffix(string(cosigned), "\n"), "\n")
	return head, []byte(lines[len(lines)-1] + "\n"), nil
}

// statusOf says whether a note is not signed as it should be, or malformed.
func statusOf(err error) int {
	_, invalid := errors.AsType[*note.InvalidSignatureError](err)
	_, unsigned := errors.AsType[*note.UnverifiedNoteError](err)
	if invalid || unsigned {
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}

// consistent checks that a checkpoint has the newest one that was cosigned as its beginning.
func consistent(r *request, newest, head audit.TreeHead) error {
	const other = http.StatusUnprocessableEntity
	var empty audit.Edge
	switch {
	case head.Size == 0 && head.Root != empty.Root():
		return refuse(other, "the root is not that of an empty log")
	case r.old == 0 && len(r.proof) > 0:
		return refuse(other, "a proof from an empty log must be empty")
	case r.old == 0:
		return nil
	case r.old == head.Size && newest.Root != head.Root:
		return refuse(other, "a checkpoint of size %d with another root was cosigned", head.Size)
	}
	proof := make(tlog.TreeProof, len(r.proof))
	for i, h := range r.proof {
		proof[i] = tlog.Hash(h)
	}
	if tlog.CheckTree(proof, head.Size, tlog.Hash(head.Root), r.old, tlog.Hash(newest.Root)) != nil {
		return refuse(other, "the proof does not show that the log of size %d begins with that of size %d", head.Size, r.old)
	}
	return nil
}

// checkpoint answers with the newest checkpoint of a log that was cosigned.
func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request) {
	for _, log := range s.logs {
		if log.byHash != r.PathValue("origin") {
			continue
		}
		log.mu.Lock()
		newest := log.note
		log.mu.Unlock()
		if newest != nil {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = w.Write(newest)
			return
		}
	}
	http.Error(w, "no checkpoint of this log was cosigned", http.StatusNotFound)
}
