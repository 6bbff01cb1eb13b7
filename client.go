package batchyard

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

const (
	// requestTimeout bounds a request, beside what the server is asked to wait,
	// and the silence between two parts of a stream.
	requestTimeout = 40 * time.Second
	// maxAnswer bounds an answer that is kept in memory: a page of tasks, or one
	// task with its output.
	maxAnswer = 64 << 20
	// maxResult bounds one of a job's results.
	maxResult = 16 << 20
	// maxHeaders bounds the headers of an answer.
	maxHeaders = 64 << 10
)

// Client talks to one Batchyard server for one tenant. Make one with [New] and
// share it: it may be used by any number of goroutines, and it keeps connections
// open.
type Client struct {
	base   string
	tenant string
	key    string
	agent  string
	retry  RetryPolicy
	http   *http.Client
	known  atomic.Bool // the server has answered: an outage may pass
}

// Option changes a [Client]; see [New].
type Option func(*Client) error

// New returns a client of the server at a base URL such as
// http://127.0.0.1:8080. It does not connect. An error says which argument is
// unusable.
func New(baseURL string, options ...Option) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The URL is not repeated: it may hold a password.
		return nil, errors.New("the base URL must look like http://host:port, without credentials, query or fragment")
	}
	c := &Client{
		base:  strings.TrimRight(u.String(), "/"),
		agent: "batchyard-go/" + strings.TrimPrefix(Version, "v"),
		retry: DefaultRetry,
		http: &http.Client{Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout:    5 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: maxHeaders,
		}},
	}
	for _, o := range options {
		if err := o(c); err != nil {
			return nil, err
		}
	}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

// WithTenant says whose tasks are meant, in every request. Without it the server
// takes the tenant "default".
func WithTenant(tenant string) Option {
	return func(c *Client) error {
		if !usable(tenant) || utf8.RuneCountInString(tenant) > task.MaxIDLength {
			return fmt.Errorf("the tenant must be at most %d printable characters", task.MaxIDLength)
		}
		c.tenant = tenant
		return nil
	}
}

// WithAPIKey sends a key as "Authorization: Bearer …". Batchyard itself has no
// authentication yet; the key is for a proxy in front of it.
func WithAPIKey(key string) Option {
	return func(c *Client) error {
		if !usable(key) {
			return errors.New("the API key must not hold control characters")
		}
		c.key = key
		return nil
	}
}

// WithUserAgent replaces "batchyard-go/" and the version. The server's audit log
// keeps it with what the client does.
func WithUserAgent(agent string) Option {
	return func(c *Client) error {
		if agent == "" || !usable(agent) {
			return errors.New("the user agent must be printable text")
		}
		c.agent = agent
		return nil
	}
}

// WithHTTPClient makes requests with a copy of h that follows no redirects. Its
// Timeout, if it has one, also cuts off waits and streams of results, so leave it
// 0 and bound calls by their contexts.
func WithHTTPClient(h *http.Client) Option {
	return func(c *Client) error {
		if h == nil {
			return errors.New("the HTTP client is nil")
		}
		own := *h
		c.http = &own
		return nil
	}
}

// WithRetry replaces [DefaultRetry].
func WithRetry(p RetryPolicy) Option {
	return func(c *Client) error {
		if p.MaxTries < 0 || p.MaxElapsed < 0 || p.MinPause < 0 || p.MaxPause < 0 {
			return errors.New("the retry policy must not hold negative values")
		}
		c.retry = p
		return nil
	}
}

// usable reports whether text can be the value of a header.
func usable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}
