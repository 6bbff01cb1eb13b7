package batchyard

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Device is a device as its last heartbeat described it.
type Device struct {
	DeviceID    string            `json:"device_id"`
	URL         string            `json:"url"`
	Models      []string          `json:"models"`
	Aliases     map[string]string `json:"aliases,omitempty"` // names in tasks, and the device's own names of these models
	Tags        []string          `json:"tags,omitempty"`
	Slots       int               `json:"slots"`               // requests that it can work on at the same time
	CPU         float64           `json:"cpu"`                 // busy share, 0 to 1
	Mem         float64           `json:"mem"`                 // used share, 0 to 1
	IO          float64           `json:"io"`                  // busy share of the busiest disk, 0 to 1
	LatencyMS   float64           `json:"latency_ms"`          // of a health check
	Queue       *int              `json:"queue,omitempty"`     // waiting inside the device; nil: unknown
	InFlight    *int              `json:"in_flight,omitempty"` // worked on by the device; nil: unknown
	Loaded      []string          `json:"loaded,omitempty"`    // models in its memory, if it says so
	Weight      float64           `json:"weight"`
	Problem     string            `json:"problem,omitempty"`  // why it does not answer; it gets no work
	Draining    bool              `json:"draining,omitempty"` // it gets no new work: it says so itself, or an operator does
	Drained     bool              `json:"drained,omitempty"`  // an operator drained it
	DrainedAt   *time.Time        `json:"drained_at,omitempty"`
	Silent      bool              `json:"silent"`                 // it missed its heartbeats and gets no work
	Unserved    bool              `json:"unserved,omitempty"`     // no batcher or no worker serves it, and it gets no work
	PausedUntil *time.Time        `json:"paused_until,omitempty"` // it asked for a pause: no request before
	Declines    []Declines        `json:"declines,omitempty"`     // what it lately refused altogether, and gets no requests for now
	MaxBatch    map[string]int    `json:"max_batch,omitempty"`    // how many items a batched request may have, by model, where it has refused more
	Context     map[string]int    `json:"context,omitempty"`      // how many tokens it takes at once, by its own names of models, as far as it said so
	Concurrency int               `json:"concurrency"`            // requests that it gets at the same time: its slots, or fewer, if it did not cope with them
	AgeMS       int64             `json:"age_ms"`                 // of the last heartbeat
	SeenAt      time.Time         `json:"seen_at"`
	JoinedAt    time.Time         `json:"joined_at"`
	State       string            `json:"state"`            // silent, down, draining, unserved, open, failing or up
	Reason      string            `json:"reason,omitempty"` // why it is in this state
	Since       *time.Time        `json:"since,omitempty"`  // since when it is in this state, if that is known
	Requests    RequestFigures    `json:"requests"`         // what the workers counted

	answered
}

// RequestFigures are what the workers counted at a device. Rates are of the last minute.
type RequestFigures struct {
	Running         int     `json:"running"`   // at the device now
	Completed       int64   `json:"completed"` // ended well, since the worker has the device
	FailureRate     float64 `json:"failure_rate"`
	MeanMS          float64 `json:"mean_ms,omitempty"`           // of a request
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"` // of output
}

// Declines is an endpoint and model whose requests a device lately all refused.
type Declines struct {
	Endpoint string    `json:"endpoint"`
	Model    string    `json:"model"`
	Status   int       `json:"status"`             // of the last answer
	Why      string    `json:"why"`                // the kind of refusal, such as no_endpoint
	MinSize  int       `json:"min_size,omitempty"` // only tasks whose input has this many bytes, or more
	Until    time.Time `json:"until"`              // then a request is tried again
}

// AbsentDevice is a device that is drained and not known now. It is still drained
// when it comes back.
type AbsentDevice struct {
	DeviceID  string    `json:"device_id"`
	DrainedAt time.Time `json:"drained_at"`
}

// DeviceList is every device that the server knows.
type DeviceList struct {
	Devices []Device
	Absent  []AbsentDevice
}

// UnmarshalJSON reads a list as the server sends it.
func (l *DeviceList) UnmarshalJSON(b []byte) error {
	var wire struct {
		Devices []json.RawMessage `json:"devices"`
		Absent  []AbsentDevice    `json:"absent"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return err
	}
	var err error
	l.Absent = wire.Absent
	l.Devices, err = readAll[Device](wire.Devices)
	return err
}

// Devices returns every device that is known, silent ones included.
func (c *Client) Devices(ctx context.Context) (*DeviceList, error) {
	var l DeviceList
	if err := c.do(ctx, call{method: http.MethodGet, path: "/v1/devices"}, &l); err != nil {
		return nil, err
	}
	return &l, nil
}

// DrainState says whether an operator has drained a device.
type DrainState struct {
	DeviceID string `json:"device_id"`
	Drained  bool   `json:"drained"`
	Changed  bool   `json:"changed"` // it was not so before

	answered
}

// Drain gives a device no new work until [Client.Undrain], even when it goes and
// comes back. What waits for the device goes elsewhere; what runs there is
// finished.
func (c *Client) Drain(ctx context.Context, deviceID string) (*DrainState, error) {
	return c.setDrained(ctx, deviceID, "/drain")
}

// Undrain gives a device work again.
func (c *Client) Undrain(ctx context.Context, deviceID string) (*DrainState, error) {
	return c.setDrained(ctx, deviceID, "/undrain")
}

func (c *Client) setDrained(ctx context.Context, deviceID, how string) (*DrainState, error) {
	path, err := pathOf("devices", deviceID, how)
	if err != nil {
		return nil, err
	}
	var d DrainState
	if err := c.do(ctx, call{method: http.MethodPost, path: path}, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// PolicySetting is how routers choose devices.
type PolicySetting struct {
	Policy  string             `json:"policy"`
	Binding string             `json:"binding,omitempty"` // when a task is bound to a device: auto, late or early
	Weights map[string]float64 `json:"weights,omitempty"` // for load_formula: cpu, mem, io, latency, queue
	Preset  string             `json:"preset,omitempty"`  // for load_formula instead of weights: balanced, compute or edge
}

// PolicyStatus is how routers choose devices now, and who said so.
type PolicyStatus struct {
	PolicySetting
	Source   string        `json:"source"`       // file: the configuration of each router; operator: it overrides that
	By       string        `json:"by,omitempty"` // the operator
	At       *time.Time    `json:"at,omitempty"`
	File     PolicySetting `json:"file"`     // as configured: what applies after [Client.ResetPolicy]
	Policies []string      `json:"policies"` // the names that there are

	answered
}

const policyPath = "/v1/router/policy"

// Policy says how routers choose devices.
func (c *Client) Policy(ctx context.Context) (*PolicyStatus, error) {
	return c.policy(ctx, call{method: http.MethodGet, path: policyPath})
}

// SetPolicy makes every router choose devices by another policy, within a second.
// It overrides their configuration until [Client.ResetPolicy].
func (c *Client) SetPolicy(ctx context.Context, p PolicySetting) (*PolicyStatus, error) {
	return c.policy(ctx, call{method: http.MethodPut, path: policyPath, body: p})
}

// ResetPolicy makes routers go back to the policy of their configuration.
func (c *Client) ResetPolicy(ctx context.Context) (*PolicyStatus, error) {
	return c.policy(ctx, call{method: http.MethodDelete, path: policyPath})
}

func (c *Client) policy(ctx context.Context, q call) (*PolicyStatus, error) {
	var p PolicyStatus
	if err := c.do(ctx, q, &p); err != nil {
		return nil, err
	}
	return &p, nil
}
