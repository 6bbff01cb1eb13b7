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
	"github.com/batchyard/batchyard/task"
)

// Drained answers a request to drain a device, or to end that.
type Drained struct {
	ID      string `json:"id"`
	Drained bool   `json:"drained"`
	Changed bool   `json:"changed" doc:"It was not so before."`
}

// PolicyIn is how routers are to choose devices.
type PolicyIn struct {
	Policy  string             `json:"policy"`
	Binding string             `json:"binding,omitempty" enum:"auto,late,early" doc:"When a task is bound to a device; auto is as the policy was published."`
	Weights map[string]float64 `json:"weights,omitempty" doc:"For load_formula: cpu, mem, io, latency, queue; none are those of the file."`
	Preset  string             `json:"preset,omitempty" enum:"balanced,compute,edge" doc:"For load_formula, instead of weights."`
}

// PolicyStatus is how routers choose devices.
type PolicyStatus struct {
	PolicyIn
	Source   string     `json:"source" enum:"file,operator" doc:"Who said so: the configuration of each router, or an operator, who goes over it."`
	By       string     `json:"by,omitempty" doc:"The operator."`
	At       *time.Time `json:"at,omitempty"`
	File     PolicyIn   `json:"file" doc:"As the configuration of the process that answers has it: what applies after DELETE."`
	Policies []string   `json:"policies" doc:"The names that there are."`
}

type (
	deviceInput struct {
		request
		headerParams
		ID string `path:"id" maxLength:"128" doc:"Id of the device."`
	}
	drainOutput struct{ Body Drained }
	policyInput struct {
		request
		headerParams
	}
	policyOutput struct{ Body PolicyStatus }
)

func (s *Server) drain(ctx context.Context, in *deviceInput) (*drainOutput, error) {
	return s.setDrained(ctx, in, true)
}

func (s *Server) undrain(ctx context.Context, in *deviceInput) (*drainOutput, error) {
	return s.setDrained(ctx, in, false)
}

func (s *Server) setDrained(ctx context.Context, in *deviceInput, on bool) (*drainOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	changed, err := s.deps.Control.Drain(ctx, in.ID, on)
	var fe *task.FieldError
	switch {
	case errors.As(err, &fe):
		return nil, unfit(err)
	case errors.Is(err, device.ErrNoDevice):
		return nil, problem(http.StatusNotFound, "there is no such device; GET /v1/devices, or `batchyard devices list`, tells those that are known")
	case err != nil:
		s.log.Warn("a device was not drained or undrained", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; send the request again in a moment")
	}
	action := task.DeviceUndrained
	if on {
		action = task.DeviceDrained
	}
	e := operatorEvent(in.r, tenant, action, traceOf(ctx))
	e.ResourceType, e.ResourceID, e.Device = "device", in.ID, in.ID
	if err := s.recordNow(ctx, e, map[string]any{"changed": changed}); err != nil {
		return nil, err
	}
	return &drainOutput{Drained{in.ID, on, changed}}, nil
}

// operatorEvent is the beginning of an event about somebody who changes how
// Batchyard runs.
func operatorEvent(r *http.Request, tenant string, a task.Action, trace string) task.Event {
	o := originOf(r, tenant)
	return task.Event{
		Action: a, Outcome: task.OutcomeOK, Tenant: tenant, ActorType: task.ActorUser, ActorID: o.Actor,
		SourceAddr: o.Addr, UserAgent: o.UserAgent, TraceID: trace,
	}
}

// recordNow writes an event that must not be missing: who changes how Batchyard
// runs is told that it is done when the log has it.
func (s *Server) recordNow(ctx context.Context, e task.Event, detail any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.QueryTimeout)
	defer cancel()
	if err := s.deps.Producer.RecordNow(ctx, e, detail); err != nil {
		s.log.Warn("an event may be missing in the audit log", "action", e.Action, "trace_id", e.TraceID, "error", err)
		return later("it is done, but the log did not take the record of it in time; send the request again, which changes nothing, so that it is recorded")
	}
	return nil
}

func (s *Server) routePolicy() {
	tags := []string{"operation"}
	const path = "/v1/router/policy"
	in := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[PolicyIn](), true, "Policy")
	huma.Register(s.api, huma.Operation{OperationID: "get-policy", Method: http.MethodGet, Path: path, Tags: tags,
		Summary: "How routers choose devices", Errors: []int{503}}, s.policy)
	huma.Register(s.api, huma.Operation{OperationID: "set-policy", Method: http.MethodPut, Path: path, Tags: tags,
		Summary:     "Make routers choose devices by another policy",
		Description: "All routers take it within router.refresh_interval. It goes over their configuration until DELETE, or until Redis forgets it.",
		Errors:      []int{400, 413, 422, 503}}, s.setPolicy)
	s.api.OpenAPI().Paths[path].Put.RequestBody = &huma.RequestBody{ // afterwards: see routeTasks
		Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: in}},
	}
	huma.Register(s.api, huma.Operation{OperationID: "reset-policy", Method: http.MethodDelete, Path: path, Tags: tags,
		Summary: "Make routers go back to the policy of their configuration", DefaultStatus: http.StatusOK, Errors: []int{503}}, s.resetPolicy)
}

func policyIn(p *device.PolicySetting) PolicyIn {
	return PolicyIn{Policy: p.Name, Binding: cmp.Or(p.Binding, device.Bindings[0]), Weights: p.Weights, Preset: p.Preset}
}

// policyStatus is how it stands; set is what an operator said, nil for nothing.
func (s *Server) policyStatus(set *device.PolicySetting) PolicyStatus {
	file := s.deps.Policy()
	out := PolicyStatus{PolicyIn: policyIn(&file), Source: "file", File: policyIn(&file), Policies: device.PolicyNames()}
	if set != nil {
		out.PolicyIn, out.Source, out.By, out.At = policyIn(set), "operator", set.By, timeOf(set.At)
	}
	return out
}

func (s *Server) policy(ctx context.Context, _ *policyInput) (*policyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	said, err := s.deps.Control.Load(ctx)
	if err != nil {
		s.log.Warn("the routers' policy is not known now", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer; ask again in a moment. Routers go on by the policy that they have")
	}
	return &policyOutput{s.policyStatus(said.Policy)}, nil
}

func (s *Server) setPolicy(ctx context.Context, in *policyInput) (*policyOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	var p PolicyIn
	if err := s.readObject(&in.request, &p); err != nil {
		return nil, err
	}
	return s.changePolicy(ctx, in.r, tenant, &device.PolicySetting{
		Name: p.Policy, Binding: p.Binding, Weights: p.Weights, Preset: p.Preset, By: tenant, At: time.Now().UTC(),
	})
}

func (s *Server) resetPolicy(ctx context.Context, in *policyInput) (*policyOutput, error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return nil, err
	}
	return s.changePolicy(ctx, in.r, tenant, nil)
}

// changePolicy sets what operators say, and records it.
func (s *Server) changePolicy(ctx context.Context, r *http.Request, tenant string, set *device.PolicySetting) (*policyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	before, err := s.deps.Control.SetPolicy(ctx, set)
	var fe *task.FieldError
	switch {
	case errors.As(err, &fe):
		return nil, unfit(err)
	case err != nil:
		s.log.Warn("the routers' policy was not changed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Redis does not answer, so it is not known whether the policy is changed; send the request again in a moment")
	}
	old, now := s.policyStatus(before), s.policyStatus(set)
	e := operatorEvent(r, tenant, task.PolicyChanged, traceOf(ctx))
	e.ResourceType, e.ResourceID = "config", "router.policy"
	if err := s.recordNow(ctx, e, map[string]any{"old": changeOf(&old), "new": changeOf(&now)}); err != nil {
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
