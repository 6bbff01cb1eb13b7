package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

const (
	maxModelsBytes = 1 << 20
	lookAgain      = time.Minute // how often to ask for models again, and for metrics if there were none
)

// device queries one inference server. It is used by one goroutine.
type device struct {
	cfg    Config
	client *http.Client

	health    string // the path that works; found by the first probe
	models    []string
	modelsAt  time.Time
	noMetrics bool // it had no metrics when last asked
	metricsAt time.Time
	noOllama  bool // it was not Ollama when last asked
	ollamaAt  time.Time
	listed    map[string]int // context lengths in its list of models
	context   map[string]int // context lengths, wherever it says them
	contextAt time.Time
}

// healthPaths are where servers say that they are well. The first one is LiteLLM's, whose /health asks every model behind
// it for an answer, which takes long and costs money.
var healthPaths = []string{"/health/liveliness", "/health", "/v1/models"}

// probe checks the device's health and measures how long it takes to answer. A server that
// supports none of the paths is healthy if it answers at all and its models are configured:
// some servers have only the endpoints of tasks.
func (d *device) probe(ctx context.Context) (latency time.Duration, err error) {
	paths := healthPaths
	if d.health != "" {
		paths = []string{d.health}
	}
	var status int
	for _, path := range paths {
		begin := time.Now()
		status, err = d.get(ctx, path, nil)
		latency = time.Since(begin)
		if err != nil {
			return 0, err
		}
		if status < 300 {
			d.health = path
			return latency, nil
		}
		if !unknown(status) {
			break
		}
		d.health = "" // the server may have been replaced by another kind: search again
	}
	if unknown(status) && len(paths) > 1 && (len(d.cfg.Models) > 0 || d.cfg.AnyModel) {
		return latency, nil
	}
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		return 0, fmt.Errorf("health check: status %d; set the key of the device in %s", status, d.cfg.KeySetting)
	}
	return 0, fmt.Errorf("health check: status %d", status)
}

// unknown reports whether the status means that the server does not have the path.
func unknown(status int) bool {
	return status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// served returns the configured models, or those that the device lists, refreshed now and
// then. If it stops listing them, the last known ones are used.
func (d *device) served(ctx context.Context) ([]string, error) {
	if len(d.cfg.Models) > 0 {
		return d.cfg.Models, nil
	}
	if len(d.models) > 0 && time.Since(d.modelsAt) < lookAgain {
		return d.models, nil
	}
	models, err := d.listModels(ctx)
	if err != nil {
		if len(d.models) > 0 {
			return d.models, nil
		}
		if d.cfg.AnyModel && errors.Is(err, errNoList) {
			return []string{anyModel}, nil
		}
		return nil, fmt.Errorf("listing its models: %w; or say which it serves, with models", err)
	}
	d.models, d.modelsAt = models, time.Now()
	return models, nil
}

// maxLengths bounds the context lengths in a heartbeat.
const maxLengths = 256

// errWrongKey means that the device wants another key, or any.
var errWrongKey = errors.New("the key is missing or wrong")

// errNoList means that the device has no list of models.
var errNoList = errors.New("it does not list its models")

// anyModel says that a device serves whatever it is asked for.
const anyModel = "*"

func (d *device) listModels(ctx context.Context) ([]string, error) {
	var list struct {
		Data []struct {
			ID     string `json:"id"`
			MaxLen int    `json:"max_model_len"`
			Meta   struct {
				Context int `json:"n_ctx"`
			} `json:"meta"`
		} `json:"data"`
	}
	status, err := d.get(ctx, "/v1/models", func(body io.Reader) error {
		raw, err := io.ReadAll(io.LimitReader(body, maxModelsBytes+1))
		if err != nil {
			return err
		}
		if len(raw) > maxModelsBytes {
			return fmt.Errorf("the list is larger than %d bytes", maxModelsBytes)
		}
		return json.Unmarshal(raw, &list)
	})
	if err != nil {
		return nil, err
	}
	switch {
	case unknown(status):
		return nil, fmt.Errorf("status %d: %w", status, errNoList)
	case status == http.StatusUnauthorized:
		return nil, fmt.Errorf("status %d: %w; set the key of the device in %s", status, errWrongKey, d.cfg.KeySetting)
	case status == http.StatusForbidden || status == http.StatusBadRequest: // so says LiteLLM without a database
		return nil, fmt.Errorf("status %d; the key of the device may be wrong, which is set in %s", status, d.cfg.KeySetting)
	case status >= 300:
		return nil, fmt.Errorf("status %d", status)
	}
	var models []string
	d.listed = nil
	for _, m := range list.Data {
		if m.MaxLen = cmp.Or(m.MaxLen, m.Meta.Context); isContext(m.MaxLen) && m.ID != "" && len(m.ID) <= maxNameBytes && len(d.listed) < maxLengths {
			if d.listed == nil {
				d.listed = map[string]int{}
			}
			d.listed[m.ID] = m.MaxLen
		}
		if m.ID != "" && len(m.ID) <= maxNameBytes && len(models) < maxModels && !slices.Contains(models, m.ID) {
			models = append(models, m.ID)
		}
	}
	if len(models) == 0 {
		return nil, errors.New("the list is empty")
	}
	return models, nil
}

// load reads what the engine says of its load: from its metrics, or in Ollama's own way.
func (d *device) load(ctx context.Context) figures {
	var f figures
	switch d.cfg.Engine {
	case "openai": // a service, which says nothing
		return f
	case "ollama":
		return d.ollama(ctx)
	case "", "auto":
		if f = d.metrics(ctx); !f.known() {
			f = d.ollama(ctx)
		}
		return f
	}
	return d.metrics(ctx)
}

// metrics reads the engine's queue and requests in flight from its metrics. Not every server
// has them; one that does not is asked again after a while.
func (d *device) metrics(ctx context.Context) figures {
	if d.noMetrics && time.Since(d.metricsAt) < lookAgain {
		return figures{}
	}
	var f figures
	status, err := d.get(ctx, "/metrics", func(body io.Reader) (err error) {
		f, err = readFigures(body)
		return err
	})
	d.metricsAt = time.Now()
	if err != nil {
		// The figures may be incomplete: report none this time.
		return figures{}
	}
	d.noMetrics = status >= 300 || !f.known()
	if d.noMetrics {
		return figures{}
	}
	return f
}

// get sends one GET with limits. read gets the body of a successful answer. What it leaves
// is discarded, up to a limit, so that the connection can be reused.
func (d *device) get(ctx context.Context, path string, read func(io.Reader) error) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.cfg.URL+path, nil)
	if err != nil {
		return 0, err
	}
	do := d.cfg.Do
	if do == nil {
		do = d.client.Do
	}
	resp, err := do(req)
	if err != nil {
		return 0, err // includes method, URL and cause
	}
	defer func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // best effort: only connection reuse is lost
		_ = resp.Body.Close()
	}()
	if read != nil && resp.StatusCode < 300 {
		if err := read(resp.Body); err != nil {
			return resp.StatusCode, fmt.Errorf("reading the answer of %s%s: %w", d.cfg.URL, path, err)
		}
	}
	return resp.StatusCode, nil
}
