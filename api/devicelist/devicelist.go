// Package devicelist says how a device is: as its heartbeats describe it, and as the workers know it.
package devicelist

import (
	"cmp"
	"time"

	"github.com/batchyard/batchyard/device"
)

// DeviceStatus is a device as its last heartbeat described it.
type DeviceStatus struct {
	ID        string            `json:"device_id"`
	URL       string            `json:"url"`
	Models    []string          `json:"models"`
	Aliases   map[string]string `json:"aliases,omitempty" doc:"Names under which tasks may ask for models, and the device's own names of these."`
	Tags      []string          `json:"tags,omitempty"`
	Slots     int               `json:"slots"`
	CPU       float64           `json:"cpu"`
	Mem       float64           `json:"mem"`
	IO        float64           `json:"io"`
	LatencyMS float64           `json:"latency_ms"`
	Queue     *int              `json:"queue,omitempty"`
	InFlight  *int              `json:"in_flight,omitempty"`
	Loaded    []string          `json:"loaded,omitempty" doc:"Models in its memory, if it says so: others are loaded first."`
	Weight    float64           `json:"weight"`
	Problem   string            `json:"problem,omitempty" doc:"Why the device does not answer; it gets no work."`
	Draining  bool              `json:"draining,omitempty" doc:"The device gets no new work: it said so, or an operator drained it."`
	Drained   bool              `json:"drained,omitempty" doc:"An operator drained it."`
	Since     *time.Time        `json:"drained_at,omitempty"`
	Silent    bool              `json:"silent" doc:"The device missed its heartbeats and gets no work."`
	Unserved  bool              `json:"unserved,omitempty" doc:"No batcher reads the device's assignments, or no worker its batches: it gets no work."`
	Paused    *time.Time        `json:"paused_until,omitempty" doc:"The device asked for a pause: no request before."`
	Declines  []device.Decline  `json:"declines,omitempty" doc:"What the device lately refused altogether, and gets no requests for now."`
	MaxBatch  map[string]int    `json:"max_batch,omitempty" doc:"How many items a batched request may have, by model, where the device has refused more."`
	Context   map[string]int    `json:"context,omitempty" doc:"How many tokens the device takes at once, by its own names of models, as far as it said so; * stands for all others."`
	AtOnce    int               `json:"concurrency" doc:"Requests that the device gets at the same time: its slots, or fewer, if it answered 429 or too late with more."`
	AgeMS     int64             `json:"age_ms" doc:"Age of the last heartbeat."`
	SeenAt    time.Time         `json:"seen_at"`
	JoinedAt  time.Time         `json:"joined_at"`
	State     string            `json:"state" enum:"silent,down,draining,unserved,open,failing,up" doc:"How the device is. open: its circuit breaker is open. failing: its last request failed, or its breaker is half open."`
	Reason    string            `json:"reason,omitempty" doc:"Why it is in this state."`
	StateAt   *time.Time        `json:"since,omitempty" doc:"Since when it is in this state, if that is known."`
	Requests  RequestFigures    `json:"requests" doc:"What the workers counted."`
}

// RequestFigures are what the workers counted at a device.
type RequestFigures struct {
	Running         int     `json:"running" doc:"Requests at the device now."`
	Completed       int64   `json:"completed" doc:"Requests that ended well since the worker has the device."`
	FailureRate     float64 `json:"failure_rate" doc:"Share of the requests of the last minute that failed."`
	MeanMS          float64 `json:"mean_ms,omitempty" doc:"Mean duration of the requests of the last minute."`
	TokensPerSecond float64 `json:"tokens_per_second,omitempty" doc:"Output tokens per second, over the last minute."`
}

// Of says how a device is.
func Of(d *device.Device, h *device.Health, now time.Time) DeviceStatus {
	how := d.Condition(h, now)
	st := DeviceStatus{
		ID: d.ID, URL: d.URL, Models: append([]string{}, d.Models...), Aliases: d.Aliases, Tags: d.Tags, Slots: d.Slots, CPU: d.CPU, Mem: d.Mem, IO: d.IO, LatencyMS: d.LatencyMS,
		Loaded: d.Loaded, Weight: d.Weight, Problem: d.Problem, Draining: d.Draining, Silent: d.Silent, Unserved: d.Unserved,
		AgeMS: d.Age.Milliseconds(), SeenAt: d.At, JoinedAt: d.JoinedAt,
		State: string(how.State), Reason: how.Reason, StateAt: timeOf(how.Since), Requests: RequestFigures(h.Figures),
	}
	if d.Queue >= 0 {
		st.Queue = &d.Queue
	}
	if d.InFlight >= 0 {
		st.InFlight = &d.InFlight
	}
	if d.Drained {
		st.Drained, st.Since = true, timeOf(d.DrainedAt)
	}
	st.Paused, st.Declines, st.MaxBatch = timeOf(h.PausedUntil(now)), h.DeclinesAt(now), h.MaxBatch
	st.Context, st.AtOnce = d.Contexts(h), min(d.Slots, cmp.Or(h.Slots, d.Slots))
	return st
}

// timeOf returns the time in UTC, nil for the zero time.
func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
