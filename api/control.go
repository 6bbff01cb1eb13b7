package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
)

// Drained answers a request to drain or undrain a device.
type Drained struct {
	ID      string `json:"device_id"`
	Drained bool   `json:"drained"`
	Changed bool   `json:"changed" doc:"The device was not so before."`
}

// PolicyIn says how routers choose devices.
type PolicyIn struct {
	Policy  string             `json:"policy"`
	Binding string             `json:"binding,omitempty" enum:"auto,late,early" doc:"When a task is bound to a device; auto leaves it to the policy."`
	Weights map[string]float64 `json:"weights,omitempty" doc:"For load_formula: the weights of cpu, mem, io, latency and queue. Without weights and preset, those of the configuration file."`
	Preset  string             `json:"preset,omitempty" enum:"balanced,compute,edge" doc:"For load_formula: weights by name."`
}

// PolicyStatus says how routers choose devices now, and who decided that.
type PolicyStatus struct {
	PolicyIn
	Source   string     `json:"source" enum:"file,operator" doc:"The configuration file of each router, or an operator, who overrides it."`
	By       string     `json:"by,omitempty" doc:"The operator."`
	At       *time.Time `json:"at,omitempty"`
	File     PolicyIn   `json:"file" doc:"The configuration file's policy, which applies after DELETE."`
	Policies []string   `json:"policies" doc:"The policies that there are."`
}

type (
	drainOutput  struct{ Body Drained }
	policyOutput struct{ Body PolicyStatus }
)

func (s *Server) drain(ctx context.Context, in *request) (*drainOutput, error) {
	return s.setDrained(ctx, in, task.DeviceDrained)
}

func (s *Server) undrain(ctx context.Context, in *request) (*drainOutput, error) {
	return s.setDrained(ctx, in, task.DeviceUndrained)
}

// setDrained drains or undrains the device, and records that as the action.
func (s *Server) setDrained(ctx context.Context, in *request, action task.Action) (*drainOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	id, err := deviceOf(in.r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	set := s.deps.Control.Undrain
	if action == task.DeviceDrained {
		set = s.deps.Control.Drain
	}
	changed, err := set(ctx, id)
	var fe *task.FieldError
	switch {
	case errors.As(err, &fe):
		return nil, unfit(err)
	case errors.Is(err, store.ErrNoDevice):
		return nil, problem(http.StatusNotFound, "unknown device; GET /v1/devices or `batchyard devices list` lists the known ones")
	case err != nil:
		s.log.Warn("draining or undraining a device failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; send the request again in a moment")
	}
	e := operatorEvent(in.r, tenant, action, traceOf(ctx))
	e.ResourceType, e.ResourceID, e.DeviceID = "device", id, id
	if err := s.recordNow(ctx, e, map[string]any{"changed": changed}); err != nil {
		return nil, err
	}
	return &drainOutput{Drained{id, action == task.DeviceDrained, changed}}, nil
}

// operatorEvent starts the event of an operator's change.
func operatorEvent(r *http.Request, tenant string, a task.Action, trace string) task.Event {
	o := originOf(r, tenant)
	return task.Event{
		Action: a, Outcome: task.OutcomeOK, Tenant: tenant, ActorType: task.ActorUser, ActorID: o.Actor,
		SourceAddr: o.Addr, UserAgent: o.UserAgent, TraceID: trace,
	}
}

// recordNow writes an event that must not be missing: an operator's change is
// answered with success only once Kafka has the event.
func (s *Server) recordNow(ctx context.Context, e task.Event, detail any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.QueryTimeout)
	defer cancel()
	if err := s.deps.Producer.RecordNow(ctx, e, detail); err != nil {
		s.log.Warn("writing an event to Kafka failed; it may be missing in the audit log", "action", e.Action, "trace_id", e.TraceID, "error", err)
		return later("the change is made, but Kafka did not take its event in time; send the request again to have it recorded: that changes nothing else")
	}
	return nil
}

func (s *Server) routePolicy() {
	tags := []string{"operation"}
	const path = "/v1/router/policy"
	huma.Register(s.api, answering(huma.Operation{OperationID: "get-policy", Method: http.MethodGet, Path: path, Tags: tags,
		Summary: "Get the policy by which routers choose devices"}, http.StatusServiceUnavailable), s.policy)
	huma.Register(s.api, answering(huma.Operation{OperationID: "set-policy", Method: http.MethodPut, Path: path, Tags: tags,
		Summary:     "Set the policy by which routers choose devices",
		Description: "Every router takes it within router.refresh_interval. It overrides their configuration until DELETE, or until Redis loses it.",
		Parameters:  params(tenantParam)},
		http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable), s.setPolicy)
	s.takesJSON(http.MethodPut, path, reflect.TypeFor[PolicyIn](), map[string]any{"policy": "load_formula", "weights": map[string]float64{"cpu": 0.6, "mem": 0.4}})
	s.describePolicy()
	huma.Register(s.api, answering(huma.Operation{OperationID: "reset-policy", Method: http.MethodDelete, Path: path, Tags: tags,
		Summary: "Return to the policy of the configuration", DefaultStatus: http.StatusOK, Parameters: params(tenantParam)},
		http.StatusServiceUnavailable), s.resetPolicy)
}

// describePolicy adds what tags of a struct cannot say: only load_formula has
// weights or a preset, and not both.
func (s *Server) describePolicy() {
	parts := s.api.OpenAPI().Components.Schemas.Map()
	names := anys(device.PolicyNames()...)
	in := parts["PolicyIn"]
	in.Properties["policy"].Enum = names
	weights := map[string]*huma.Schema{}
	for _, figure := range device.LoadFigures {
		weights[figure] = &huma.Schema{Type: huma.TypeNumber, Nullable: true, Minimum: ptr(0.0), Maximum: ptr(1e6)}
	}
	in.Properties["weights"] = &huma.Schema{Type: huma.TypeObject, Nullable: true, Description: in.Properties["weights"].Description,
		Properties: weights, AdditionalProperties: false}
	null, empty := &huma.Schema{Type: "null"}, &huma.Schema{Type: huma.TypeObject, Nullable: true, MaxProperties: ptr(0)}
	positive := make([]*huma.Schema, 0, len(device.LoadFigures)+1)
	for _, figure := range device.LoadFigures {
		positive = append(positive, &huma.Schema{Required: []string{figure}, Properties: map[string]*huma.Schema{figure: {Type: huma.TypeNumber, ExclusiveMinimum: ptr(0.0)}}})
	}
	formula := &huma.Schema{Enum: []any{"load_formula"}}
	in.OneOf = []*huma.Schema{
		{Properties: map[string]*huma.Schema{"policy": {Not: formula}, "weights": empty, "preset": null}},
		{Properties: map[string]*huma.Schema{"policy": formula, "weights": empty}},
		{Required: []string{"weights"}, Properties: map[string]*huma.Schema{"policy": formula, "preset": null,
			"weights": {Type: huma.TypeObject, AnyOf: positive}}},
	}
	status := parts["PolicyStatus"]
	status.Properties["policy"].Enum = names
	status.Properties["policies"].Items.Enum = names
}

func policyIn(p *device.PolicySetting) PolicyIn {
	return PolicyIn{Policy: p.Name, Binding: cmp.Or(p.Binding, device.Bindings[0]), Weights: p.Weights, Preset: p.Preset}
}

// policyStatus returns the policy in force; set is the operator's, nil for none.
func (s *Server) policyStatus(set *device.PolicySetting) PolicyStatus {
	file := s.deps.Policy()
	out := PolicyStatus{PolicyIn: policyIn(&file), Source: "file", File: policyIn(&file), Policies: device.PolicyNames()}
	if set != nil {
		out.PolicyIn, out.Source, out.By, out.At = policyIn(set), "operator", set.By, timeOf(set.At)
	}
	return out
}

func (s *Server) policy(ctx context.Context, _ *request) (*policyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	settings, err := s.deps.Control.Load(ctx)
	if err != nil {
		s.log.Warn("reading the routers' policy failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; try again in a moment. Routers keep the policy that they have")
	}
	return &policyOutput{s.policyStatus(settings.Policy)}, nil
}

func (s *Server) setPolicy(ctx context.Context, in *request) (*policyOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	var p PolicyIn
	if err := s.readObject(in, &p); err != nil {
		return nil, err
	}
	return s.changePolicy(ctx, in.r, tenant, &device.PolicySetting{
		Name: p.Policy, Binding: p.Binding, Weights: p.Weights, Preset: p.Preset, By: tenant, At: clock.Now().UTC(),
	})
}

func (s *Server) resetPolicy(ctx context.Context, in *request) (*policyOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	return s.changePolicy(ctx, in.r, tenant, nil)
}

// changePolicy sets the operator's policy, nil to reset it, and records the change.
func (s *Server) changePolicy(ctx context.Context, r *http.Request, tenant string, set *device.PolicySetting) (*policyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	before, err := s.deps.Control.SetPolicy(ctx, set)
	var fe *task.FieldError
	switch {
	case errors.As(err, &fe):
		return nil, unfit(err)
	case err != nil:
		s.log.Warn("changing the routers' policy failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer: the policy may or may not be changed; send the request again in a moment")
	}
	old, now := s.policyStatus(before), s.policyStatus(set)
	action, detail := task.PolicyChanged, map[string]any{"old": changeOf(&old), "new": changeOf(&now)}
	if before == nil && set == nil || before != nil && set != nil && before.Same(set) {
		// Perhaps a request that is sent again because Kafka did not take the event of the change: this event
		// then says who made it, and when.
		action, detail = task.PolicyKept, map[string]any{"kept": changeOf(&old), "set_by": old.By, "set_at": old.At}
	}
	e := operatorEvent(r, tenant, action, traceOf(ctx))
	e.ResourceType, e.ResourceID = "config", "router.policy"
	if err := s.recordNow(ctx, e, detail); err != nil {
		return nil, err
	}
	return &policyOutput{now}, nil
}

// policyChange is one side of a change, as the audit log has it.
type policyChange struct {
	PolicyIn
	Source string `json:"source"`
}

func changeOf(s *PolicyStatus) policyChange { return policyChange{s.PolicyIn, s.Source} }
