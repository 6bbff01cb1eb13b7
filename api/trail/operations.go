package trail

import (
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Operation says how an operation of the API gets into the audit log. Its handler records a change that it made;
// [Trail.Answered] records what was refused, and what was read.
type Operation struct {
	Change   task.Action // recorded if it is refused, or fails
	Reads    bool        // recorded if it succeeds, or is refused
	Exempt   string      // why it is not recorded
	Resource string      // what it changes or reads
	ID       string      // name of the path's value that says which
}

// Operations lists every operation of the API's description.
var Operations = map[string]Operation{
	"submit-tasks":           {Change: task.TaskRefused, Resource: "task"},
	"create-chat-completion": {Change: task.TaskRefused, Resource: "task"},
	"create-completion":      {Change: task.TaskRefused, Resource: "task"},
	"create-embedding":       {Change: task.TaskRefused, Resource: "task"},
	"create-response":        {Change: task.TaskRefused, Resource: "task"},
	"create-moderation":      {Change: task.TaskRefused, Resource: "task"},
	"create-score":           {Change: task.TaskRefused, Resource: "task"},
	"create-rerank":          {Change: task.TaskRefused, Resource: "task"},
	"cancel-task":            {Change: task.TaskCancelRequested, Resource: "task", ID: "task_id"},
	"reprioritize-task":      {Change: task.TaskReprioritized, Resource: "task", ID: "task_id"},
	"retry-task":             {Change: task.TaskRetried, Resource: "task", ID: "task_id"},
	"announce-job":           {Change: task.JobSubmitted, Resource: "job", ID: "job_id"},
	"cancel-job":             {Change: task.JobCancelRequested, Resource: "job", ID: "job_id"},
	"send-heartbeat":         {Change: task.DeviceRefused, Resource: "device", ID: "device_id"},
	"drain-device":           {Change: task.DeviceDrained, Resource: "device", ID: "device_id"},
	"undrain-device":         {Change: task.DeviceUndrained, Resource: "device", ID: "device_id"},
	"set-policy":             {Change: task.PolicyChanged, Resource: "config"},
	"reset-policy":           {Change: task.PolicyChanged, Resource: "config"},
	"get-task":               {Reads: true, Resource: "task", ID: "task_id"},
	"list-tasks":             {Reads: true, Resource: "task"},
	"list-task-events":       {Reads: true, Resource: "event", ID: "task_id"},
	"explain-task":           {Reads: true, Resource: "task", ID: "task_id"},
	"get-job":                {Reads: true, Resource: "job", ID: "job_id"},
	"list-jobs":              {Reads: true, Resource: "job"},
	"explain-job":            {Reads: true, Resource: "job", ID: "job_id"},
	"list-job-results":       {Reads: true, Resource: "answer", ID: "job_id"},
	"list-devices":           {Exempt: "it shows no task, prompt or answer"},
	"list-models":            {Exempt: "it shows no task, prompt or answer"},
	"get-model":              {Exempt: "it shows no task, prompt or answer"},
	"get-policy":             {Exempt: "it shows no task, prompt or answer"},
	"healthz":                {Exempt: "monitoring asks every few seconds"},
	"readyz":                 {Exempt: "monitoring asks every few seconds"},
	"metrics":                {Exempt: "monitoring asks every few seconds"},
}

// OpenAI lists the operations of OpenAI's API.
var OpenAI = map[string]Operation{
	"upload-file":      {Change: task.FileUploaded, Resource: "file"},
	"delete-file":      {Change: task.FileDeleted, Resource: "file", ID: "file_id"},
	"list-files":       {Reads: true, Resource: "file"},
	"get-file":         {Reads: true, Resource: "file", ID: "file_id"},
	"get-file-content": {Reads: true, Resource: "file", ID: "file_id"},
	"create-batch":     {Change: task.JobRequested, Resource: "job"},
	"cancel-batch":     {Change: task.JobCancelRequested, Resource: "job", ID: "batch_id"},
	"get-batch":        {Reads: true, Resource: "job", ID: "batch_id"},
	"list-batches":     {Reads: true, Resource: "job"},
}

// Of returns an operation.
func Of(id string) Operation {
	if op, ok := OpenAI[id]; ok {
		return op
	}
	return Operations[id]
}

// Access is a request that was answered.
type Access struct {
	Operation string // of the API's description
	Status    int    // of the response
	Tenant    string
	Origin    task.Origin
	ID        string // of what the request was about; empty: the request does not say, or not correctly
	TraceID   string
	Reason    string   // why it was refused
	Fields    []string // that were wrong
}

// event returns the event of an access, without a time and a detail. ok is false if its handler has recorded it, or if
// it leaves no row.
func (a *Access) event() (e task.Event, ok bool) {
	op := Of(a.Operation)
	refused, failed := a.Status >= 400 && a.Status < 500, a.Status >= 500
	e = task.Event{
		Action: op.Change, Outcome: task.OutcomeOK, Tenant: a.Tenant, ActorType: task.ActorUser, ActorID: a.Origin.Actor,
		SourceAddr: a.Origin.Addr, UserAgent: a.Origin.UserAgent, ResourceType: op.Resource, ResourceID: a.ID, TraceID: a.TraceID,
	}
	switch {
	case op.Reads && !failed:
		e.Action = task.DataRead
	case op.Change != "" && (refused || failed):
	default:
		return e, false
	}
	switch {
	case refused:
		e.Outcome, e.ErrorClass = task.OutcomeRefused, task.ClassInvalid
	case failed:
		e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassInternal
	}
	// Not TaskID: there may be no such task.
	switch op.Resource {
	case "job":
		e.JobID = a.ID
	case "device":
		if device.ValidateID(a.ID) == nil {
			e.DeviceID = a.ID
		}
		if op.Change == task.DeviceRefused {
			e.Tenant, e.ActorType, e.ActorID = task.DefaultTenant, task.ActorDevice, a.ID
		}
	}
	return e, true
}

// Said is what a device says of itself, without its momentary figures.
type Said struct {
	URL      string   `json:"url"`
	Models   []string `json:"models"`
	Aliases  int      `json:"aliases,omitempty"` // how many
	Tags     []string `json:"tags,omitempty"`
	Slots    int      `json:"slots"`
	Weight   float64  `json:"weight"`
	Problem  string   `json:"problem,omitempty"`
	Draining bool     `json:"draining,omitempty"`
}

// maxNames bounds the lists in an event.
const maxNames = 16

// SaidBy returns what a device says of itself.
func SaidBy(d *device.Device) Said {
	return Said{d.URL, d.Models[:min(len(d.Models), maxNames)], len(d.Aliases), d.Tags[:min(len(d.Tags), maxNames)], d.Slots, d.Weight, d.Problem, d.Draining}
}
