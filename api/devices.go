package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/devicelist"
	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
)

// maxBeat bounds the body of a heartbeat.
const maxBeat = 128 << 10

// Heartbeat is what a device, or the agent beside it, says of itself. URL and Models
// are required unless the device is leaving; one with a Problem may not know its models.
type Heartbeat struct {
	URL       string            `json:"url,omitempty" maxLength:"2048" doc:"Base URL of the device's API, without credentials or query." example:"http://10.0.0.5:8000"`
	Models    []string          `json:"models,omitempty" minItems:"1" maxItems:"256" minLength:"1" maxLength:"256" doc:"The models that the device serves; [\"*\"] is every model." example:"[\"llama-3-8b\"]"`
	Aliases   map[string]string `json:"aliases,omitempty" maxProperties:"256" doc:"Names under which tasks may ask for models, and the device's own names of these." example:"{\"gpt-4o-mini\":\"llama-3-8b\"}"`
	Tags      []string          `json:"tags,omitempty" maxItems:"64" minLength:"1" maxLength:"256" doc:"Capability tags that tasks may need." example:"[\"gpu\"]"`
	Slots     *int              `json:"slots,omitempty" minimum:"1" maximum:"4096" default:"1" doc:"Requests that the device works on at the same time."`
	CPU       float64           `json:"cpu,omitempty" minimum:"0" maximum:"1" doc:"Busy share of the CPUs." example:"0.35"`
	Mem       float64           `json:"mem,omitempty" minimum:"0" maximum:"1" doc:"Used share of the memory."`
	IO        float64           `json:"io,omitempty" minimum:"0" maximum:"1" doc:"Busy share of the busiest disk."`
	LatencyMS float64           `json:"latency_ms,omitempty" minimum:"0" maximum:"10000000" doc:"Time of a health check."`
	Queue     *int              `json:"queue,omitempty" minimum:"0" maximum:"2147483647" doc:"Requests waiting inside the device; leave it out if unknown."`
	InFlight  *int              `json:"in_flight,omitempty" minimum:"0" maximum:"2147483647" doc:"Requests that the device works on; leave it out if unknown."`
	Loaded    []string          `json:"loaded,omitempty" maxItems:"64" minLength:"1" maxLength:"256" doc:"Models that are in the device's memory; leave it out if unknown." example:"[\"llama-3-8b\"]"`
	Context   map[string]int    `json:"context,omitempty" maxProperties:"256" doc:"How many tokens the device takes at once, by its own names of models; * stands for all others. Leave it out if unknown." example:"{\"llama-3-8b\":8192}"`
	Weight    *float64          `json:"weight,omitempty" exclusiveMinimum:"0" maximum:"1000000" default:"1" doc:"Share of the load, for weighted policies."`
	Problem   string            `json:"problem,omitempty" maxLength:"1024" doc:"Why the device does not answer; it gets no work while this is set. The models may then be unknown."`
	Draining  bool              `json:"draining,omitempty" doc:"The device finishes what it has and takes nothing new."`
	Leaving   bool              `json:"leaving,omitempty" doc:"The device leaves the fleet now; no other field is needed."`
}

// HeartbeatTaken answers a heartbeat.
type HeartbeatTaken struct {
	ID     string `json:"device_id"`
	Joined bool   `json:"joined" doc:"The device was unknown or silent before."`
	Left   bool   `json:"left,omitempty" doc:"The device was known, and has left."`
}

// DeviceStatus is a device as its last heartbeat described it.
type DeviceStatus = devicelist.DeviceStatus

// DeviceList lists the devices.
type DeviceList struct {
	Devices []DeviceStatus `json:"devices"`
	Absent  []AbsentDevice `json:"absent,omitempty" doc:"Drained devices that are not known now; they are still drained when they come back."`
}

// AbsentDevice is a drained device that is not known.
type AbsentDevice struct {
	ID    string    `json:"device_id"`
	Since time.Time `json:"drained_at"`
}

type (
	beatOutput    struct{ Body HeartbeatTaken }
	devicesOutput struct{ Body DeviceList }
)

func (s *Server) routeDevices() {
	const one = "/v1/devices/{device_id}"
	tags := []string{"devices"}
	huma.Register(s.api, answering(huma.Operation{OperationID: "send-heartbeat", Method: http.MethodPost, Path: one + "/heartbeat", Tags: tags,
		Summary: "Send a heartbeat", Description: "The first one registers the device. Send one every few seconds: a device that misses three gets no work.",
		Parameters: params(deviceParam)},
		http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable), s.beat)
	s.takesJSON(http.MethodPost, one+"/heartbeat", reflect.TypeFor[Heartbeat](), map[string]any{"url": "http://10.0.0.5:8000", "models": []string{"llama-3-8b"}, "slots": 4})
	s.describeHeartbeat()
	huma.Register(s.api, answering(huma.Operation{OperationID: "list-devices", Method: http.MethodGet, Path: "/v1/devices", Tags: tags,
		Summary: "List the devices", Description: "Those that sent a heartbeat lately, and those that are drained."},
		http.StatusServiceUnavailable), s.devices)
	huma.Register(s.api, answering(huma.Operation{OperationID: "drain-device", Method: http.MethodPost, Path: one + "/drain", Tags: tags,
		Summary: "Give a device no new work", Description: "What the device has is finished. It stays drained, also when it restarts, until it is undrained.",
		Parameters: params(deviceParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.drain)
	huma.Register(s.api, answering(huma.Operation{OperationID: "undrain-device", Method: http.MethodPost, Path: one + "/undrain", Tags: tags,
		Summary: "Give a drained device work again", Parameters: params(deviceParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.undrain)
}

// modelName is plainText, but not "*", which is no name.
const modelName = `^([^\x00-\x1f\x7f*]|[^\x00-\x1f\x7f]{2})[^\x00-\x1f\x7f]*$`

// describeHeartbeat adds what tags of a struct cannot say.
func (s *Server) describeHeartbeat() {
	h := s.api.OpenAPI().Components.Schemas.Map()["Heartbeat"]
	h.Properties["url"].Pattern = baseURL
	h.Properties["models"].Items.Pattern, h.Properties["tags"].Items.Pattern = plainText, plainText
	h.Properties["loaded"].Items.Pattern, h.Properties["problem"].Pattern = plainText, plainText
	name := &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxNameLength), Pattern: modelName}
	h.Properties["aliases"].AdditionalProperties = name
	h.Properties["context"].AdditionalProperties = &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0), Maximum: ptr(float64(device.MaxContext))}
	h.Properties["context"].Extensions = map[string]any{"propertyNames": &huma.Schema{MinLength: name.MinLength, MaxLength: name.MaxLength, Pattern: plainText}}
	h.Properties["aliases"].Extensions = map[string]any{"propertyNames": &huma.Schema{MinLength: name.MinLength, MaxLength: name.MaxLength, Pattern: modelName}}
	given := func(names ...string) map[string]*huma.Schema {
		out := map[string]*huma.Schema{}
		for _, n := range names {
			out[n] = &huma.Schema{Not: &huma.Schema{Type: "null"}}
		}
		return out
	}
	h.AnyOf = []*huma.Schema{
		{Required: []string{"url", "models"}, Properties: given("url", "models")},
		{Required: []string{"url", "problem"}, Properties: map[string]*huma.Schema{"url": {Not: &huma.Schema{Type: "null"}}, "problem": {Type: huma.TypeString, MinLength: ptr(1)}}},
		{Required: []string{"leaving"}, Properties: map[string]*huma.Schema{"leaving": {Enum: []any{true}}}},
	}
}

func (s *Server) beat(ctx context.Context, in *request) (*beatOutput, error) {
	id, err := deviceOf(in.r)
	if err != nil {
		return nil, err
	}
	if p := wantsJSON(in.r); p != nil {
		return nil, p
	}
	body, release, err := s.budget.readBody(in.w, in.r, maxBeat)
	defer release()
	if err != nil {
		return nil, err
	}
	endless(in.w)
	hb, err := decodeBeat(body)
	if err == nil {
		err = hb.check(id)
	}
	if err != nil {
		return nil, unfit(err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	out := &beatOutput{HeartbeatTaken{ID: id}}
	var beaten store.Beaten
	action := task.DeviceJoined
	if hb.Leaving {
		action = task.DeviceLeft
		out.Body.Left, err = s.deps.Registry.Left(ctx, id)
	} else {
		beaten, err = s.deps.Registry.Beat(ctx, hb.device(id))
	}
	if err != nil {
		return nil, s.beatRefused(ctx, err)
	}
	out.Body.Joined = beaten.Joined
	if out.Body.Joined || out.Body.Left || beaten.Before != nil {
		s.recordDevice(ctx, in.r, action, hb, beaten)
	}
	return out, nil
}

// recordDevice writes that a device joined, left, or says something else of itself.
func (s *Server) recordDevice(ctx context.Context, r *http.Request, action task.Action, hb *Heartbeat, b store.Beaten) {
	id := r.PathValue("device_id")
	o := originOf(r, id)
	e := task.Event{
		Action: action, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorDevice, ActorID: id,
		SourceAddr: o.Addr, UserAgent: o.UserAgent, ResourceType: "device", ResourceID: id, DeviceID: id, TraceID: traceOf(ctx),
	}
	detail := map[string]any{}
	if !hb.Leaving {
		now := hb.device(id)
		now.Normalize()
		detail["new"] = trail.SaidBy(&now)
		if b.Before != nil {
			detail["old"] = trail.SaidBy(b.Before)
		}
		if !b.Joined {
			e.Action = task.DeviceChanged
		}
	}
	_ = s.record(ctx, e, detail) // it has said so in the log
}

// deviceOf returns the device that the path names. An id that cannot be one is a
// field that is wrong, as elsewhere it is a field of a body.
func deviceOf(r *http.Request) (string, error) {
	id := r.PathValue("device_id")
	var fe *task.FieldError
	if err := device.ValidateID(id); errors.As(err, &fe) {
		return "", fieldProblem(http.StatusUnprocessableEntity, []ProblemError{{"device_id", fe.Problem + "; " + fe.Remedy}}, 0)
	}
	return id, nil
}

// device turns the heartbeat into a device, in which 0 stands for a default and -1
// for unknown. check has refused both in a heartbeat.
func (h *Heartbeat) device(id string) device.Device {
	return device.Device{
		ID: id, URL: h.URL, Models: h.Models, Aliases: h.Aliases, Tags: h.Tags, Slots: value(h.Slots, 0), CPU: h.CPU, Mem: h.Mem, IO: h.IO,
		LatencyMS: h.LatencyMS, Loaded: h.Loaded, Context: h.Context, Queue: value(h.Queue, -1), InFlight: value(h.InFlight, -1), Weight: value(h.Weight, 0), Problem: h.Problem, Draining: h.Draining,
	}
}

// value returns what p points to, or otherwise if it is nil.
func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// check returns the first field that is wrong, as a *task.FieldError, or nil.
func (h *Heartbeat) check(id string) error {
	for _, f := range []struct {
		name  string
		wrong bool
		given any
		send  string
	}{
		{"slots", value(h.Slots, 1) == 0, 0, fmt.Sprintf("send 1 to %d", device.MaxSlots)},
		{"weight", value(h.Weight, 1) == 0, 0, "send a number above 0"},
		{"queue", value(h.Queue, 0) < 0, value(h.Queue, 0), "send a count, or leave it out if it is unknown"},
		{"in_flight", value(h.InFlight, 0) < 0, value(h.InFlight, 0), "send a count, or leave it out if it is unknown"},
	} {
		if f.wrong {
			return &task.FieldError{Field: f.name, Problem: fmt.Sprintf("%v is out of range", f.given), Remedy: f.send}
		}
	}
	d := h.device(id)
	d.Normalize()
	if h.Leaving { // neither is needed, but what is sent must be right
		d.URL = cmp.Or(d.URL, "http://left")
		if len(d.Models) == 0 {
			d.Models = []string{device.AnyModel}
		}
	}
	return d.Validate()
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
	s.log.Warn("recording a heartbeat failed", "trace_id", traceOf(ctx), "error", err)
	return later("Redis does not answer; send the next heartbeat as usual")
}

func (s *Server) devices(ctx context.Context, _ *request) (*devicesOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	ds, err := s.deps.Registry.List(ctx)
	if err != nil {
		s.log.Warn("listing the devices failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; try again in a moment")
	}
	settings, err := s.deps.Control.Load(ctx)
	if err != nil {
		s.log.Warn("reading what operators drained failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; try again in a moment")
	}
	if s.deps.Presence != nil {
		if err := s.deps.Presence.Mark(ctx, ds); err != nil {
			s.log.Warn("reading which devices are served failed", "trace_id", traceOf(ctx), "error", err)
			return nil, later("Redis does not answer; try again in a moment")
		}
	}
	_, healths, err := s.deps.Rates.Load(ctx)
	if err != nil {
		s.log.Warn("reading what workers know of the devices failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; try again in a moment")
	}
	out := &devicesOutput{DeviceList{Devices: make([]DeviceStatus, len(ds))}}
	now := clock.Now()
	for i := range ds {
		h := healths[ds[i].ID]
		out.Body.Devices[i] = devicelist.Of(&ds[i], &h, now)
		delete(settings.Drained, ds[i].ID)
	}
	for id, since := range settings.Drained {
		out.Body.Absent = append(out.Body.Absent, AbsentDevice{id, since})
	}
	slices.SortFunc(out.Body.Absent, func(a, b AbsentDevice) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
