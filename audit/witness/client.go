package witness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/batchyard/batchyard/audit"
)

// Remote is a witness, as a log knows it.
type Remote struct {
	Key string `yaml:"key" default:"" doc:"Public key of the witness, as batchyard audit witness prints it: NAME+ID+KEY."`
	URL string `yaml:"url" default:"" doc:"Where it is, such as https://witness.example.com."`
}

// Client asks one witness. It may be used by several goroutines.
type Client struct {
	verifier note.Verifier
	url      string
	http     *http.Client

	mu   sync.Mutex
	size int64 // that the witness cosigned last, as far as is known
}

// callTimeout bounds one HTTP request.
const callTimeout = 10 * time.Second

// NewClient returns a client of a witness.
func NewClient(r Remote) (*Client, error) {
	v, err := audit.WitnessVerifier(r.Key)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not the URL of a witness: write https://HOST", audit.Short(r.URL))
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConns: 2, IdleConnTimeout: 2 * time.Minute, TLSHandshakeTimeout: callTimeout, MaxResponseHeaderBytes: 16 << 10}
	return &Client{verifier: v, url: strings.TrimRight(r.URL, "/"), http: &http.Client{
		Transport: transport, Timeout: callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Verifier verifies the cosignatures of the witness.
func (c *Client) Verifier() note.Verifier { return c.verifier }

// Name returns the name of the witness.
func (c *Client) Name() string { return c.verifier.Name() }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// DisagreesError says that a witness will never cosign the checkpoint: it has seen another history, or
// does not know the log. Trying again is of no use without an operator.
type DisagreesError struct{ Name, Why string }

func (e *DisagreesError) Error() string {
	return fmt.Sprintf("the witness %s refuses: %s", e.Name, e.Why)
}

// Proof returns the consistency proof from a smaller size of the log to that of the checkpoint.
type Proof func(ctx context.Context, old int64) ([]audit.Hash, error)

// maxTries bounds the requests for one cosignature: the first may learn what size the witness knows, and
// another recorder may be faster meanwhile.
const maxTries = 3

// Cosign asks for the cosignature of a checkpoint, and returns it once it is verified.
func (c *Client) Cosign(ctx context.Context, signed []byte, prove Proof) (note.Signature, error) {
	text, ok := audit.NoteText(signed)
	if !ok {
		return note.Signature{}, errors.New("not a signed note")
	}
	head, err := audit.ParseTreeHead(text)
	if err != nil {
		return note.Signature{}, err
	}
	c.mu.Lock()
	old := min(c.size, head.Size)
	c.mu.Unlock()
	for range maxTries {
		r := &request{old: old, note: signed}
		if old > 0 && old < head.Size {
			if r.proof, err = prove(ctx, old); err != nil {
				return note.Signature{}, fmt.Errorf("proving to the witness %s that checkpoint %d follows %d: %w", c.Name(), head.Size, old, err)
			}
		}
		sig, known, err := c.ask(ctx, r, text)
		if err != nil {
			return note.Signature{}, err
		}
		if known < 0 {
			c.remember(head.Size)
			return sig, nil
		}
		c.remember(known)
		if known > head.Size {
			return note.Signature{}, &DisagreesError{c.Name(), fmt.Sprintf("it has cosigned checkpoint %d of %s, and this is number %d: another recorder signs with the same key, or the checkpoints in between were lost or removed", known, head.Origin, head.Size)}
		}
		old = known
	}
	return note.Signature{}, fmt.Errorf("the witness %s says another size of the log each time", c.Name())
}

func (c *Client) remember(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size = size
}

// maxAnswer bounds an answer.
const maxAnswer = 16 << 10

// ask makes one request. known is the size that the witness says it knows; -1 if it has cosigned.
func (c *Client) ask(ctx context.Context, r *request, text string) (sig note.Signature, known int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+addPath, bytes.NewReader(r.encode()))
	if err != nil {
		return sig, 0, err
	}
	status, answer, err := c.do(req)
	if err != nil {
		return sig, 0, err
	}
	said := audit.Short(strings.TrimSpace(string(answer)))
	switch status {
	case http.StatusOK:
		n, err := note.Open(append([]byte(text+"\n"), answer...), note.VerifierList(c.verifier))
		if err != nil {
			return sig, 0, fmt.Errorf("the witness %s answered without a valid cosignature by its key: %w", c.Name(), err)
		}
		return n.Sigs[0], -1, nil
	case http.StatusConflict:
		known, err := parseSize(strings.TrimSuffix(string(answer), "\n"))
		if err != nil {
			return sig, 0, fmt.Errorf("the witness %s answered 409 without a size: %w", c.Name(), err)
		}
		return sig, known, nil
	case http.StatusNotFound, http.StatusForbidden, http.StatusUnprocessableEntity:
		return sig, 0, &DisagreesError{c.Name(), fmt.Sprintf("%d %s", status, said)}
	}
	return sig, 0, fmt.Errorf("the witness %s answered %d: %s", c.Name(), status, said)
}

func (c *Client) do(req *http.Request) (status int, answer []byte, err error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("asking the witness %s: %w", c.Name(), err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("more than %d bytes", maxAnswer)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("reading the answer of the witness %s: %w", c.Name(), err)
	}
	return resp.StatusCode, answer, nil
}

// Newest returns the newest checkpoint of a log that the witness has cosigned; nil if there is none. Its
// signatures have not been verified.
func (c *Client) Newest(ctx context.Context, origin string) ([]byte, error) {
	sum := sha256.Sum256([]byte(origin))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/"+hex.EncodeToString(sum[:])+"/checkpoint", http.NoBody)
	if err != nil {
		return nil, err
	}
	status, answer, err := c.do(req)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound:
		return nil, nil
	case status != http.StatusOK:
		return nil, fmt.Errorf("the witness %s answered %d", c.Name(), status)
	}
	return answer, nil
}
