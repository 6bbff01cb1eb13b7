package witness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/batchyard/batchyard/audit"
)

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return key
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// history is a log, with all of its hashes.
type history struct {
	t      testing.TB
	origin string
	key    ed25519.PrivateKey
	edge   audit.Edge
	hashes []tlog.Hash
}

func (l *history) add(data string) *history {
	l.t.Helper()
	for _, h := range l.edge.Complete(audit.LeafHash([]byte(data))) {
		l.hashes = append(l.hashes, tlog.Hash(h))
	}
	return l
}

// fork returns a copy that grows on its own.
func (l *history) fork() *history {
	return &history{l.t, l.origin, l.key, l.edge.Clone(), append([]tlog.Hash(nil), l.hashes...)}
}

func (l *history) head() *audit.TreeHead {
	return &audit.TreeHead{Origin: l.origin, Size: l.edge.Size, Root: l.edge.Root()}
}

func (l *history) note() []byte {
	l.t.Helper()
	signed, err := l.head().SignNote(l.key)
	require.NoError(l.t, err)
	return signed
}

func (l *history) prove(_ context.Context, old int64) ([]audit.Hash, error) {
	p, err := tlog.ProveTree(l.edge.Size, old, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = l.hashes[x]
		}
		return out, nil
	}))
	out := make([]audit.Hash, len(p))
	for i, h := range p {
		out[i] = audit.Hash(h)
	}
	return out, err
}

func (l *history) vkey() string {
	l.t.Helper()
	text, err := audit.LogKey(l.origin, public(l.key))
	require.NoError(l.t, err)
	return text
}

func newHistory(t testing.TB) *history {
	return &history{t: t, origin: "example.com/log", key: newKey(t)}
}

// world is a witness, and a client of it, over HTTP.
type world struct {
	t      testing.TB
	cfg    Config
	server *Server
	http   *httptest.Server
	client *Client
}

func newWorld(t testing.TB, logs ...string) *world {
	t.Helper()
	w := &world{t: t, cfg: Config{Name: "witness.example.com", Key: newKey(t), Dir: filepath.Join(t.TempDir(), "state"), Logs: logs, Logger: slog.New(slog.DiscardHandler)}}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	var err error
	w.server, err = New(w.cfg)
	require.NoError(w.t, err)
	w.http = httptest.NewServer(w.server)
	text, err := audit.WitnessKey(w.cfg.Name, public(w.cfg.Key))
	require.NoError(w.t, err)
	w.client, err = NewClient(Remote{Key: text, URL: w.http.URL + "/"})
	require.NoError(w.t, err)
}

func (w *world) stop() {
	w.client.Close()
	w.http.Close()
	_ = w.server.Close()
}

func (w *world) cosign(l *history) error {
	w.t.Helper()
	sig, err := w.client.Cosign(w.t.Context(), l.note(), l.prove)
	if err == nil {
		require.WithinDuration(w.t, time.Now(), audit.CosignedAt(sig), time.Minute)
	}
	return err
}

// post sends a request as it is, and returns the answer.
func (w *world) post(body []byte) (status int, kind, answer string) {
	w.t.Helper()
	resp, err := http.Post(w.http.URL+addPath, "application/octet-stream", bytes.NewReader(body))
	require.NoError(w.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
}

func TestALogThatOnlyGrowsIsCosigned(t *testing.T) {
	t.Parallel()
	l := newHistory(t)
	w := newWorld(t, l.vkey())
	newest, err := w.client.Newest(t.Context(), l.origin)
	require.NoError(t, err)
	require.Nil(t, newest)
	for i := range 40 {
		l.add(fmt.Sprint(i))
		if i%3 == 0 || i > 30 {
			require.NoError(t, w.cosign(l), "size %d", i+1)
			require.NoError(t, w.cosign(l), "asked again")
		}
	}
	newest, err = w.client.Newest(t.Context(), l.origin)
	require.NoError(t, err)
	log, err := note.NewVerifier(l.vkey())
	require.NoError(t, err)
	n, err := note.Open(newest, note.VerifierList(log, w.client.Verifier()))
	require.NoError(t, err)
	require.Len(t, n.Sigs, 2)
	require.Equal(t, l.head().Text(), n.Text)
}

func TestForksAndRollbacksAreRefused(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1").add("2").add("3")
	older := l.fork()
	w := newWorld(t, l.vkey())
	l.add("4").add("5")
	require.NoError(t, w.cosign(l))
	for name, fork := range map[string]*history{
		"a fork":                  older.fork().add("other").add("5").add("6"),
		"a fork of the same size": older.fork().add("4").add("other"),
		"a log from scratch":      (&history{t: t, origin: l.origin, key: l.key}).add("a").add("b").add("c").add("d").add("e").add("f").add("g").add("h"),
	} {
		disagrees := new(DisagreesError)
		require.ErrorAs(t, w.cosign(fork), &disagrees, name)
		require.Contains(t, disagrees.Why, "422", name)
	}
	disagrees := new(DisagreesError)
	require.ErrorAs(t, w.cosign(older), &disagrees)
	require.Contains(t, disagrees.Why, "it has cosigned checkpoint 5")

	// By hand: pretending that the witness knows less, or nothing.
	fork := older.fork().add("other").add("5").add("6")
	for _, old := range []int64{0, 3, 4, 6} {
		proof := []audit.Hash(nil)
		if old > 0 && old < 6 {
			var err error
			proof, err = fork.prove(t.Context(), old)
			require.NoError(t, err)
		}
		status, kind, answer := w.post((&request{old, proof, fork.note()}).encode())
		require.Equal(t, []any{http.StatusConflict, sizeType, "5\n"}, []any{status, kind, answer}, "old %d", old)
	}
	status, _, _ := w.post((&request{5, nil, older.note()}).encode())
	require.Equal(t, http.StatusBadRequest, status, "old size larger than the checkpoint's")
	require.NoError(t, w.cosign(l.add("6").add("7")), "the honest log goes on")
}

func TestAWitnessRemembersAcrossRestarts(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1").add("2")
	older := l.fork()
	w := newWorld(t, l.vkey())
	require.NoError(t, w.cosign(l.add("3")))
	_, err := New(w.cfg)
	require.ErrorContains(t, err, "another process is the witness")
	w.stop()
	w.start()
	disagrees := new(DisagreesError)
	require.ErrorAs(t, w.cosign(older.fork().add("other")), &disagrees)
	require.ErrorAs(t, w.cosign(older), &disagrees)
	require.NoError(t, w.cosign(l.add("4")))

	// It does not start with a state that it cannot read: it would cosign any history.
	w.stop()
	files, err := filepath.Glob(filepath.Join(w.cfg.Dir, "*.checkpoint"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	was, err := os.ReadFile(files[0])
	require.NoError(t, err)
	for _, bad := range []string{"", "x", strings.Replace(string(was), l.origin, "example.com/other", 1)} {
		require.NoError(t, os.WriteFile(files[0], []byte(bad), 0o600))
		_, err = New(w.cfg)
		require.ErrorContains(t, err, "restore", "%q", bad)
	}
	require.NoError(t, os.WriteFile(files[0], was, 0o600))
	w.start()
}

// What cannot be stored is not cosigned: after a restart the witness would not know of it.
func TestNothingIsCosignedThatIsNotStored(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1")
	w := newWorld(t, l.vkey())
	require.NoError(t, w.cosign(l))
	moved := w.cfg.Dir + ".away"
	require.NoError(t, os.Rename(w.cfg.Dir, moved))
	require.ErrorContains(t, w.cosign(l.add("2")), "500")
	require.NoError(t, os.Rename(moved, w.cfg.Dir))
	require.NoError(t, w.cosign(l))
}

func TestWhoseCheckpointsAreCosigned(t *testing.T) {
	t.Parallel()
	l, stranger := newHistory(t).add("1"), newHistory(t).add("1")
	stranger.origin = "example.com/stranger"
	thief := l.fork()
	thief.key = newKey(t)
	w := newWorld(t, l.vkey())
	for status, body := range map[int][]byte{
		http.StatusNotFound:   (&request{0, nil, stranger.note()}).encode(),
		http.StatusForbidden:  (&request{0, nil, thief.note()}).encode(),
		http.StatusBadRequest: (&request{0, nil, bytes.Replace(l.note(), []byte("\n1\n"), []byte("\n01\n"), 1)}).encode(),
	} {
		have, _, answer := w.post(body)
		require.Equal(t, status, have, answer)
	}
	for _, bad := range [][]byte{nil, []byte("\n\n"), []byte("old 0"), []byte("old 00\n\n"), []byte("old -1\n\n"), []byte("old 0\nAAAA\n\n"), []byte("new 0\n\n"),
		append([]byte("old 0\n\n"), bytes.Repeat([]byte("x"), maxRequest)...),
		(&request{0, make([]audit.Hash, audit.MaxPath+1), l.note()}).encode()} {
		status, _, _ := w.post(bad)
		require.Equal(t, http.StatusBadRequest, status, "%.50q", bad)
	}
	status, _, _ := w.post((&request{0, make([]audit.Hash, 1), l.note()}).encode())
	require.Equal(t, http.StatusUnprocessableEntity, status, "a proof from nothing")
	disagrees := new(DisagreesError)
	require.ErrorAs(t, w.cosign(stranger), &disagrees)
	require.NoError(t, w.cosign(l))
}

// A log whose key was replaced goes on with the new one once the witness has it; the old one may not fork it.
func TestTheKeyOfALogRotates(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1").add("2")
	w := newWorld(t, l.vkey())
	require.NoError(t, w.cosign(l))
	old := l.fork()
	l.key = newKey(t)
	disagrees := new(DisagreesError)
	require.ErrorAs(t, w.cosign(l.add("3")), &disagrees)
	w.stop()
	w.cfg.Logs = append(w.cfg.Logs, l.vkey())
	w.start()
	require.NoError(t, w.cosign(l))
	require.ErrorAs(t, w.cosign(old.add("other")), &disagrees)
}

// Of two histories that are shown at the same time, one is cosigned.
func TestTwoForksAtTheSameTime(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1")
	w := newWorld(t, l.vkey())
	require.NoError(t, w.cosign(l))
	roots := make([]audit.Hash, 16)
	var all sync.WaitGroup
	for i := range roots {
		fork := l.fork().add(fmt.Sprint(i % 2)).add("3")
		proof, err := fork.prove(t.Context(), 1)
		require.NoError(t, err)
		body := (&request{1, proof, fork.note()}).encode()
		all.Go(func() {
			if head, _, err := w.server.Cosign(body); err == nil {
				roots[i] = head.Root
			}
		})
	}
	all.Wait()
	cosigned := 0
	for _, r := range roots {
		if r != (audit.Hash{}) {
			cosigned++
		}
	}
	require.Equal(t, 1, cosigned, "the others began with a size that was no longer the newest")
}

// A client believes a signature only, and no answer without bounds.
func TestAWitnessThatLies(t *testing.T) {
	t.Parallel()
	l := newHistory(t).add("1").add("2")
	honest := newWorld(t, l.vkey())
	text, err := audit.WitnessKey(honest.cfg.Name, public(honest.cfg.Key))
	require.NoError(t, err)
	other, err := note.Sign(&note.Note{Text: l.head().Text()}, audit.CosignatureSigner(honest.cfg.Name, newKey(t), time.Now))
	require.NoError(t, err)
	lines := strings.SplitAfter(string(other), "\n")
	for name, answer := range map[string]func(http.ResponseWriter){
		"another key": func(w http.ResponseWriter) { _, _ = io.WriteString(w, lines[len(lines)-2]) },
		"nothing":     func(http.ResponseWriter) {},
		"too much":    func(w http.ResponseWriter) { _, _ = w.Write(bytes.Repeat([]byte("x"), maxAnswer+1)) },
		"sizes":       func(w http.ResponseWriter) { w.WriteHeader(http.StatusConflict); _, _ = io.WriteString(w, "1\n") },
		"no size":     func(w http.ResponseWriter) { w.WriteHeader(http.StatusConflict); _, _ = io.WriteString(w, "x\n") },
		"a redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", honest.http.URL)
			w.WriteHeader(http.StatusFound)
		},
	} {
		liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
		c, err := NewClient(Remote{Key: text, URL: liar.URL})
		require.NoError(t, err)
		_, err = c.Cosign(t.Context(), l.note(), l.prove)
		require.Error(t, err, name)
		disagrees := new(DisagreesError)
		require.NotErrorAs(t, err, &disagrees, name)
		c.Close()
		liar.Close()
	}
	for _, bad := range []Remote{{Key: text, URL: "witness.example.com"}, {Key: text, URL: "ftp://x"}, {Key: text, URL: "http://x?y"}, {Key: l.vkey(), URL: honest.http.URL}} {
		_, err := NewClient(bad)
		require.Error(t, err, "%+v", bad)
	}
}

func FuzzRequests(f *testing.F) {
	l := newHistory(f).add("1")
	w := newWorld(f, l.vkey())
	f.Add((&request{0, nil, l.note()}).encode())
	f.Add((&request{3, make([]audit.Hash, 2), l.note()}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRequest(b); err == nil {
			require.Equal(t, b, r.encode(), "there is one form")
		}
		_, _, _ = w.server.Cosign(b)
	})
}
