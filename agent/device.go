package agent

import (
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
	lookAgain      = time.Minute // for models, and for metrics where there were none
)

// device asks one inference server. It is used by one goroutine.
type device struct {
	cfg    Config
	client *http.Client

	health    string // the path that answers; found at the first probe
	models    []string
	modelsAt  time.Time
	noMetrics bool // there were none when last asked
	metricsAt time.Time
}

// probe asks whether the device is well and measures how long it takes to say so.
// A server that knows neither of the questions is well when it answers at all,
// provided that somebody said which models it has: not every server has more
// than the endpoints of the tasks.
func (d *device) probe(ctx context.Context) (latency time.Duration, err error) {
	paths := []string{"/health", "/v1/models"}
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
		d.health = "" // the server may have been replaced by another kind: look anew
	}
	if unknown(status) && len(paths) > 1 && len(d.cfg.Models) > 0 {
		return latency, nil
	}
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		return 0, fmt.Errorf("asking %s for its health: status %d; set the key of the device in $%s", d.cfg.URL, status, d.cfg.DeviceKeyEnv)
	}
	return 0, fmt.Errorf("asking %s for its health: status %d", d.cfg.URL, status)
}

// unknown reports whether a server has no such path, or none to be read.
func unknown(status int) bool {
	return status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// served are the configured models, or those that the device lists, asked again
// every now and then. While it does not list them, the last known count.
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
		return nil, fmt.Errorf("asking %s for its models: %w; or name them with --models", d.cfg.URL, err)
	}
	d.models, d.modelsAt = models, time.Now()
	return models, nil
}

func (d *device) listModels(ctx context.Context) ([]string, error) {
	var list struct {
		Data []struct {
			ID string `json:"id"`
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
	if status >= 300 {
		return nil, fmt.Errorf("status %d", status)
	}
	var models []string
	for _, m := range list.Data {
		if m.ID != "" && len(m.ID) <= maxNameBytes && len(models) < maxModels && !slices.Contains(models, m.ID) {
			models = append(models, m.ID)
		}
	}
	if len(models) == 0 {
		return nil, errors.New("it lists none")
	}
	return models, nil
}

// load asks the engine's metrics for its queue and what is in flight. Not every
// server tells; one that does not is left alone for a while.
func (d *device) load(ctx context.Context) figures {
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
		// Half of the figures could be wrong sums; say nothing this time.
		return figures{}
	}
	d.noMetrics = status >= 300 || !f.known()
	if d.noMetrics {
		return figures{}
	}
	return f
}

// get sends one bounded GET. read sees the body of a good answer; what it leaves
// is dropped, a little of it so that the connection can be used again.
func (d *device) get(ctx context.Context, path string, read func(io.Reader) error) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.cfg.URL+path, nil)
	if err != nil {
		return 0, err
	}
	if d.cfg.DeviceKey != "" {
		req.Header.Set("Authorization", "Bearer "+d.cfg.DeviceKey)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return 0, err // says method, URL and cause
	}
	defer func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // best effort: only reuse is lost
		_ = resp.Body.Close()
	}()
	if read != nil && resp.StatusCode < 300 {
		if err := read(resp.Body); err != nil {
			return resp.StatusCode, fmt.Errorf("reading the answer of %s%s: %w", d.cfg.URL, path, err)
		}
	}
	return resp.StatusCode, nil
}
