package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// maxBeat bounds the body of a heartbeat.
const maxBeat = 128 << 10

// Heartbeat is what a device, or the agent beside it, says of itself.
type Heartbeat struct {
	URL       string   `json:"url,omitempty" doc:"Base of the device's API, such as http://10.0.0.5:8000." example:"http://10.0.0.5:8000"`
	Models    []string `json:"models,omitempty" doc:"What it serves; [\"*\"] is every model."`
	Tags      []string `json:"tags,omitempty" doc:"Capabilities that tasks may need."`
	Slots     int      `json:"slots,omitempty" minimum:"1" maximum:"4096" doc:"Requests that it can work on at the same time."`
	CPU       float64  `json:"cpu,omitempty" minimum:"0" maximum:"1" doc:"Busy share."`
	Mem       float64  `json:"mem,omitempty" minimum:"0" maximum:"1" doc:"Used share."`
	IO        float64  `json:"io,omitempty" minimum:"0" maximum:"1" doc:"Busy share of the busiest disk."`
	LatencyMS float64  `json:"latency_ms,omitempty" minimum:"0" doc:"Of a health check."`
	Queue     *int     `json:"queue,omitempty" minimum:"0" doc:"Waiting inside the device; leave it out when it is not known."`
	InFlight  *int     `json:"in_flight,omitempty" minimum:"0" doc:"Worked on by the device; leave it out when it is not known."`
	Weight    float64  `json:"weight,omitempty" doc:"For weighted policies."`
	Draining  bool     `json:"draining,omitempty" doc:"Takes nothing new."`
	Leaving   bool     `json:"leaving,omitempty" doc:"Goes at once; nothing else needs to be said."`
}

// BeatTaken answers a heartbeat.
type BeatTaken struct {
	ID     string `json:"id"`
	Joined bool   `json:"joined" doc:"It was not known, or silent, until now."`
	Left   bool   `json:"left,omitempty" doc:"It was known, and has left."`
}

// DeviceStatus is a device as it is known.
type DeviceStatus struct {
	ID        string     `json:"id"`
	URL       string     `json:"url"`
	Models    []string   `json:"models"`
	Tags      []string   `json:"tags,omitempty"`
	Slots     int        `json:"slots"`
	CPU       float64    `json:"cpu"`
	Mem       float64    `json:"mem"`
	IO        float64    `json:"io"`
	LatencyMS float64    `json:"latency_ms"`
	Queue     *int       `json:"queue,omitempty"`
	InFlight  *int       `json:"in_flight,omitempty"`
	Weight    float64    `json:"weight"`
	Draining  bool       `json:"draining,omitempty" doc:"It gets no new work: it says so itself, or an operator does."`
	Drained   bool       `json:"drained,omitempty" doc:"An operator drained it."`
	Since     *time.Time `json:"drained_at,omitempty"`
	Silent    bool       `json:"silent" doc:"It missed its heartbeats and gets no work."`
	AgeMS     int64      `json:"age_ms" doc:"Of the last heartbeat."`
	SeenAt    time.Time  `json:"seen_at"`
	JoinedAt  time.Time  `json:"joined_at"`
}

// DeviceList is every device that is known.
type DeviceList struct {
	Devices []DeviceStatus `json:"devices"`
	Absent  []AbsentDevice `json:"absent,omitempty" doc:"Devices that are drained and not known now; they are still drained when they come back."`
}

// AbsentDevice is a device that is drained and not known.
type AbsentDevice struct {
	ID    string    `json:"id"`
	Since time.Time `json:"drained_at"`
}

type beatInput struct {
	request
	ID string `path:"id" maxLength:"128" doc:"Id of the device: letters, digits and . _ - : @"`
}

type (
	beatOutput    struct{ Body BeatTaken }
	devicesInput  struct{ request }
	devicesOutput struct{ Body DeviceList }
)

func (s *Server) routeDevices() {
	beat := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Heartbeat](), true, "Heartbeat")
	huma.Register(s.api, huma.Operation{OperationID: "heartbeat", Method: http.MethodPost, Path: "/v1/devices/{id}/heartbeat", Tags: []string{"devices"},
		Summary: "A device says that it lives and how it is, every 5 seconds",
		Errors:  []int{400, 413, 422, 503}}, s.beat)
	s.api.OpenAPI().Paths["/v1/devices/{id}/heartbeat"].Post.RequestBody = &huma.RequestBody{ // afterwards: see routeTasks
		Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: beat}},
	}
	huma.Register(s.api, huma.Operation{OperationID: "list-devices", Method: http.MethodGet, Path: "/v1/devices", Tags: []string{"devices"},
		Summary: "Every device that is known, silent ones included", Errors: []int{503}}, s.devices)
	huma.Register(s.api, huma.Operation{OperationID: "drain-device", Method: http.MethodPost, Path: "/v1/devices/{id}/drain", Tags: []string{"devices"},
		Summary:     "Give a device no new work, until it is undrained",
		Description: "What waits for the device goes elsewhere, what runs there is finished. Heartbeats do not end it, nor does the device's going.",
		Errors:      []int{404, 422, 503}}, s.drain)
	huma.Register(s.api, huma.Operation{OperationID: "undrain-device", Method: http.MethodPost, Path: "/v1/devices/{id}/undrain", Tags: []string{"devices"},
		Summary: "End that a device is drained", Errors: []int{404, 422, 503}}, s.undrain)
}

func (s *Server) beat(ctx context.Context, in *beatInput) (*beatOutput, error) {
	if err := device.ValidateID(in.ID); err != nil {
		return nil, unfit(err)
	}
	body, release, err := s.budget.readBody(in.w, in.r, maxBeat)
	defer release()
	if err != nil {
		return nil, err
	}
	hb, err := decodeBeat(body)
	if err != nil {
		return nil, unfit(err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	out := &beatOutput{BeatTaken{ID: in.ID}}
	action := task.DeviceJoined
	if hb.Leaving {
		action = task.DeviceLeft
		out.Body.Left, err = s.deps.Registry.Left(ctx, in.ID)
	} else {
		out.Body.Joined, err = s.deps.Registry.Beat(ctx, hb.device(in.ID))
	}
	if err != nil {
		return nil, s.beatRefused(ctx, err)
	}
	if out.Body.Joined || out.Body.Left {
		o := originOf(in.r, in.ID)
		s.record(ctx, task.Event{
			Action: action, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorDevice, ActorID: in.ID,
			SourceAddr: o.Addr, UserAgent: o.UserAgent, ResourceType: "device", ResourceID: in.ID, Device: in.ID, TraceID: traceOf(ctx),
		}, nil)
	}
	return out, nil
}

func (h *Heartbeat) device(id string) device.Device {
	d := device.Device{
		ID: id, URL: h.URL, Models: h.Models, Tags: h.Tags, Slots: h.Slots, CPU: h.CPU, Mem: h.Mem, IO: h.IO,
		LatencyMS: h.LatencyMS, Queue: -1, InFlight: -1, Weight: h.Weight, Draining: h.Draining,
	}
	if h.Queue != nil {
		d.Queue = *h.Queue
	}
	if h.InFlight != nil {
		d.InFlight = *h.InFlight
	}
	return d
}

// decodeBeat reads a heartbeat; the error is a *task.FieldError.
func decodeBeat(body []byte) (*Heartbeat, error) {
	var h Heartbeat
	if err := decodeObject(body, &h); err != nil {
		return nil, err
	}
	return &h, nil
}

func (s *Server) beatRefused(ctx context.Context, err error) error {
	var fe *task.FieldError
	if errors.As(err, &fe) {
		return unfit(err)
	}
	s.log.Warn("a heartbeat was not recorded", "trace_id", traceOf(ctx), "error", err)
	return later("Redis does not answer; send the next heartbeat as usual")
}

func (s *Server) devices(ctx context.Context, _ *devicesInput) (*devicesOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		s.log.Warn("devices could not be listed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; ask again in a moment")
	}
	said, err := s.deps.Control.Load(ctx)
	if err != nil {
		s.log.Warn("what operators said is not known now", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; ask again in a moment")
	}
	out := &devicesOutput{DeviceList{Devices: make([]DeviceStatus, len(ds))}}
	for i := range ds {
		d := &ds[i]
		st := DeviceStatus{
			ID: d.ID, URL: d.URL, Models: d.Models, Tags: d.Tags, Slots: d.Slots, CPU: d.CPU, Mem: d.Mem, IO: d.IO, LatencyMS: d.LatencyMS,
			Weight: d.Weight, Draining: d.Draining, Silent: d.Silent, AgeMS: d.Age.Milliseconds(), SeenAt: d.At, JoinedAt: d.JoinedAt,
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
		delete(said.Drained, d.ID)
		out.Body.Devices[i] = st
	}
	for id, since := range said.Drained {
		out.Body.Absent = append(out.Body.Absent, AbsentDevice{id, since})
	}
	slices.SortFunc(out.Body.Absent, func(a, b AbsentDevice) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
