package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Heartbeat is the body of POST /v1/devices/{device_id}/heartbeat.
type Heartbeat struct {
	URL       string            `json:"url,omitempty"`
	Models    []string          `json:"models,omitempty"`
	Aliases   map[string]string `json:"aliases,omitempty"` // names in tasks, and the device's own names of these models
	Weight    float64           `json:"weight,omitempty"`
	Problem   string            `json:"problem,omitempty"` // why the device does not answer; it gets no work
	Tags      []string          `json:"tags,omitempty"`
	Slots     int               `json:"slots,omitempty"`
	CPU       float64           `json:"cpu"`                 // busy share of the host's processors, 0 to 1
	Mem       float64           `json:"mem"`                 // used share of the host's memory, 0 to 1
	IO        float64           `json:"io"`                  // busy share of the busiest disk, 0 to 1
	LatencyMS float64           `json:"latency_ms"`          // of a health check from agent to device
	Queue     *int              `json:"queue,omitempty"`     // waiting inside the device, when it tells
	InFlight  *int              `json:"in_flight,omitempty"` // worked on by the device, when it tells
	Loaded    []string          `json:"loaded,omitempty"`    // models in its memory, when it tells
	Context   map[string]int    `json:"context,omitempty"`   // tokens that it takes at once, by model, when it tells
}

// leaving is the last heartbeat, sent when the agent stops.
var leaving = []byte(`{"leaving":true}`)

// refusedError is an answer that a retry with the same heartbeat would get again.
type refusedError struct {
	status int
	reason string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("the server rejected the heartbeat with status %d: %s", e.status, e.reason)
}

// server posts heartbeats to Batchyard's API.
type server struct {
	cfg    Config
	client *http.Client
}

func (s *server) beat(ctx context.Context, h Heartbeat) error {
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encoding the heartbeat of %s: %w", h.URL, err)
	}
	return s.post(ctx, body)
}

func (s *server) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.Server+"/v1/devices/"+url.PathEscape(s.cfg.ID)+"/heartbeat", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making a request to the server %s: %w", s.cfg.Server, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "batchyard-agent")
	if s.cfg.ServerKey != "" {
		req.Header.Set("Authorization", "Bearer "+s.cfg.ServerKey)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err // includes method, URL and cause
	}
	defer func() { _ = resp.Body.Close() }() // the answer was read, or is not needed
	// A problem document is small; a proxy's error page may have any size.
	answer, readErr := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	switch {
	case resp.StatusCode < 300:
		return nil
	case resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout:
		reason := problem(answer)
		if readErr != nil && reason == "" {
			reason = readErr.Error()
		}
		return &refusedError{status: resp.StatusCode, reason: reason}
	}
	return fmt.Errorf("posting the heartbeat to %s: status %d", s.cfg.Server, resp.StatusCode)
}

// problem returns the explanation in an RFC 9457 document, or else the text.
func problem(answer []byte) string {
	var p struct {
		Title, Detail string
		Errors        []struct{ Detail, Pointer string }
	}
	if json.Unmarshal(answer, &p) == nil && (p.Detail != "" || p.Title != "") {
		text := p.Detail
		if text == "" {
			text = p.Title
		}
		for _, e := range p.Errors {
			text += "; " + e.Pointer + ": " + e.Detail
		}
		return text
	}
	text := strings.ToValidUTF8(string(answer), "")
	return strings.TrimSpace(text[:min(len(text), 200)])
}
