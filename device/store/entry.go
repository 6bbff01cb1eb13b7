package store

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
)

// entry is a device as stored in the Redis hash. Times are milliseconds of Redis' clock;
// the script writes them first.
type entry struct {
	At       int64  `json:"at,omitempty"`
	JoinedAt int64  `json:"joined_at,omitempty"`
	Sum      string `json:"sum,omitempty"` // of the descriptive part: when it changes, routers are notified

	ChangedAt int64 `json:"changed_at,omitempty"` // when Sum changed
	heartbeat
}

// heartbeat is the part of an entry that the heartbeat provides.
type heartbeat struct {
	URL       string            `json:"url"`
	Models    []string          `json:"models"`
	Aliases   map[string]string `json:"aliases,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	Slots     int               `json:"slots"`
	Draining  bool              `json:"draining,omitempty"`
	Problem   string            `json:"problem,omitempty"`
	Weight    float64           `json:"weight"`
	CPU       float64           `json:"cpu"`
	Mem       float64           `json:"mem"`
	IO        float64           `json:"io"`
	LatencyMS float64           `json:"latency_ms"`
	Queue     *int              `json:"queue,omitempty"`
	InFlight  *int              `json:"in_flight,omitempty"`
	Loaded    []string          `json:"loaded,omitempty"`
	Context   map[string]int    `json:"context,omitempty"`
}

func heartbeatOf(d *device.Device) heartbeat {
	p := heartbeat{
		URL: d.URL, Models: d.Models, Aliases: d.Aliases, Tags: d.Tags, Slots: d.Slots, Draining: d.Draining, Problem: d.Problem, Weight: d.Weight,
		CPU: d.CPU, Mem: d.Mem, IO: d.IO, LatencyMS: d.LatencyMS, Loaded: d.Loaded, Context: d.Context,
	}
	if d.Queue >= 0 {
		p.Queue = &d.Queue
	}
	if d.InFlight >= 0 {
		p.InFlight = &d.InFlight
	}
	return p
}

// parseEntry parses an entry. ok is false if it is not a valid heartbeat: other programs
// may write to the hash, too.
func parseEntry(id, value string, now time.Time, timeout time.Duration) (device.Device, bool) {
	if len(value) > maxEntry || strings.Count(value, ",") > maxEntryValues {
		return device.Device{}, false
	}
	var e entry
	if json.Unmarshal([]byte(value), &e) != nil {
		return device.Device{}, false
	}
	d := device.Device{
		ID: id, URL: e.URL, Models: e.Models, Aliases: e.Aliases, Tags: e.Tags, Slots: e.Slots, Draining: e.Draining, Problem: e.Problem, Weight: e.Weight,
		CPU: e.CPU, Mem: e.Mem, IO: e.IO, LatencyMS: e.LatencyMS, Queue: -1, InFlight: -1, Loaded: e.Loaded, Context: e.Context,
	}
	if e.Queue != nil {
		d.Queue = *e.Queue
	}
	if e.InFlight != nil {
		d.InFlight = *e.InFlight
	}
	d.Normalize()
	if d.Validate() != nil {
		return device.Device{}, false
	}
	d.At, d.JoinedAt = time.UnixMilli(e.At).UTC(), time.UnixMilli(e.JoinedAt).UTC()
	d.ChangedAt = d.JoinedAt
	if e.ChangedAt > 0 {
		d.ChangedAt = time.UnixMilli(e.ChangedAt).UTC()
	}
	d.Age = max(0, now.Sub(d.At))
	d.Silent = d.Age > timeout
	return d, true
}
