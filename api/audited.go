package api

import (
	"net/http"

	"github.com/batchyard/batchyard/api/trail"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// audited says how an operation gets into the audit log. Its handler records a change that it made; ServeHTTP
// records what was refused, and what was read.
type audited struct {
	change   task.Action // recorded if it is refused, or fails
	reads    bool        // recorded if it succeeds, or is refused
	exempt   string      // why it is not recorded
	resource string      // what it changes or reads
	id       string      // name of the path's value that says which
}

// auditedOperations lists every operation of the description.
var auditedOperations = map[string]audited{
	"submit-tasks":      {change: task.TaskRefused, resource: "task"},
	"cancel-task":       {change: task.TaskCancelRequested, resource: "task", id: "task_id"},
	"reprioritize-task": {change: task.TaskReprioritized, resource: "task", id: "task_id"},
	"retry-task":        {change: task.TaskRetried, resource: "task", id: "task_id"},
	"announce-job":      {change: task.JobSubmitted, resource: "job", id: "job_id"},
	"cancel-job":        {change: task.JobCancelRequested, resource: "job", id: "job_id"},
	"send-heartbeat":    {change: task.DeviceRefused, resource: "device", id: "device_id"},
	"drain-device":      {change: task.DeviceDrained, resource: "device", id: "device_id"},
	"undrain-device":    {change: task.DeviceUndrained, resource: "device", id: "device_id"},
	"set-policy":        {change: task.PolicyChanged, resource: "config"},
	"reset-policy":      {change: task.PolicyChanged, resource: "config"},
	"get-task":          {reads: true, resource: "task", id: "task_id"},
	"list-tasks":        {reads: true, resource: "task"},
	"list-task-events":  {reads: true, resource: "event", id: "task_id"},
	"explain-task":      {reads: true, resource: "task", id: "task_id"},
	"get-job":           {reads: true, resource: "job", id: "job_id"},
	"list-jobs":         {reads: true, resource: "job"},
	"explain-job":       {reads: true, resource: "job", id: "job_id"},
	"list-job-results":  {reads: true, resource: "answer", id: "job_id"},
	"list-devices":      {exempt: "it shows no task, prompt or answer"},
	"get-policy":        {exempt: "it shows no task, prompt or answer"},
	"healthz":           {exempt: "monitoring asks every few seconds"},
	"readyz":            {exempt: "monitoring asks every few seconds"},
	"metrics":           {exempt: "monitoring asks every few seconds"},
}

// note records a request that was answered, unless its handler has.
func (s *Server) note(w *response, r *http.Request, operation string) {
	op := auditedOperations[operation]
	refused, failed := w.status >= 400 && w.status < 500, w.status >= 500
	e := task.Event{Action: op.change, Outcome: task.OutcomeOK, ActorType: task.ActorUser, ResourceType: op.resource, TraceID: traceOf(r.Context())}
	switch {
	case op.reads && !failed:
		e.Action = task.DataRead
	case op.change != "" && (refused || failed):
	default:
		return
	}
	if refused || failed {
		e.Outcome, e.ErrorClass = task.OutcomeRefused, task.ClassInvalid
		if failed {
			e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassInternal
		}
	}
	tenant, _, err := tenantOf(r)
	if err != nil {
		tenant = task.DefaultTenant // the reason says that the header is wrong
	}
	o := originOf(r, tenant)
	e.Tenant, e.ActorID, e.SourceAddr, e.UserAgent = tenant, o.Actor, o.Addr, o.UserAgent
	if id := r.PathValue(op.id); op.id != "" && badName(id) == "" {
		e.ResourceID = id
	}
	switch op.resource {
	case "job":
		e.JobID = e.ResourceID
	case "device":
		if device.ValidateID(e.ResourceID) == nil {
			e.DeviceID = e.ResourceID
		}
		if op.change == task.DeviceRefused {
			e.Tenant, e.ActorType, e.ActorID = task.DefaultTenant, task.ActorDevice, e.ResourceID
		}
	}
	a := trail.Access{Event: e, Operation: operation, Status: w.status}
	if p := w.problem; p != nil {
		if a.Fields = pointers(p); len(a.Fields) == 0 {
			a.Reason = clip(p.Detail)
		}
	}
	s.trail.Note(r.Context(), a)
}

// pointers names the wrong fields, without their values.
func pointers(p *Problem) []string {
	var out []string
	for _, e := range p.Errors {
		out = append(out, clip(e.Pointer))
	}
	return out
}
