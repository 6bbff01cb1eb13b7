package query

import (
	"encoding/json"
	"net"
	"strconv"
	"strings"

	"github.com/batchyard/batchyard/task"
)

// An audit row in the form of the Open Cybersecurity Schema Framework, which security event
// collectors understand: class API Activity. What has no place in it is in unmapped, by the name of
// the column, so that nothing is left out.
//
// https://schema.ocsf.io/1.7.0/classes/api_activity

// Numbers of the schema.
const (
	ocsfVersion  = "1.7.0"
	ocsfCategory = 6    // Application Activity
	ocsfClass    = 6003 // API Activity

	ocsfCreate = 1
	ocsfRead   = 2
	ocsfUpdate = 3
	ocsfDelete = 4
	ocsfOther  = 99

	ocsfInformational = 1
	ocsfLow           = 2
	ocsfMedium        = 3

	ocsfSuccess = 1
	ocsfFailure = 2
)

// ocsfActivities are the actions that create, change or remove something on request; the system
// does all others by itself.
var ocsfActivities = map[task.Action]struct {
	id   int
	name string
}{
	task.TaskAccepted: {ocsfCreate, "Create"}, task.TaskRefused: {ocsfCreate, "Create"}, task.TaskResubmitted: {ocsfCreate, "Create"}, task.RecordReplayed: {ocsfCreate, "Create"},
	task.DeviceJoined: {ocsfCreate, "Create"}, task.DeviceLeft: {ocsfDelete, "Delete"},
	task.TaskCancelRequested: {ocsfUpdate, "Update"}, task.TaskReprioritized: {ocsfUpdate, "Update"},
	task.TaskRetried: {ocsfUpdate, "Update"}, task.JobSubmitted: {ocsfCreate, "Create"}, task.JobCancelRequested: {ocsfUpdate, "Update"},
	task.DeviceRefused: {ocsfCreate, "Create"}, task.DeviceChanged: {ocsfUpdate, "Update"},
	task.RestoreAccepted: {ocsfUpdate, "Update"}, task.SchemaChanged: {ocsfUpdate, "Update"}, task.TopicsCreated: {ocsfCreate, "Create"},
	task.DataRead: {ocsfRead, "Read"}, task.AuditExported: {ocsfRead, "Read"}, task.AuditVerified: {ocsfRead, "Read"}, task.LedgerChecked: {ocsfRead, "Read"},
	task.DeviceDrained: {ocsfUpdate, "Update"}, task.DeviceUndrained: {ocsfUpdate, "Update"},
	task.PolicyChanged: {ocsfUpdate, "Update"}, task.PolicyKept: {ocsfUpdate, "Update"}, task.ConfigReloaded: {ocsfUpdate, "Update"},
}

// OCSF is an event of class API Activity. Its fields are those of the schema.
type OCSF struct {
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	CategoryUID  int            `json:"category_uid"`
	CategoryName string         `json:"category_name"`
	ClassUID     int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	TypeUID      int            `json:"type_uid"`
	Time         int64          `json:"time"` // milliseconds
	SeverityID   int            `json:"severity_id"`
	Severity     string         `json:"severity"`
	StatusID     int            `json:"status_id"`
	Status       string         `json:"status"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Duration     int64          `json:"duration,omitempty"` // milliseconds
	Metadata     ocsfMetadata   `json:"metadata"`
	Actor        ocsfActor      `json:"actor"`
	API          ocsfAPI        `json:"api"`
	SrcEndpoint  ocsfEndpoint   `json:"src_endpoint"`
	HTTPRequest  *ocsfRequest   `json:"http_request,omitempty"`
	Resources    []ocsfResource `json:"resources,omitempty"`
	Unmapped     map[string]any `json:"unmapped,omitempty"`
}

type ocsfMetadata struct {
	Version    string      `json:"version"`
	Product    ocsfProduct `json:"product"`
	UID        string      `json:"uid"`
	TenantUID  string      `json:"tenant_uid,omitempty"`
	LogName    string      `json:"log_name"`
	LoggedTime int64       `json:"logged_time"`
	Sequence   int64       `json:"sequence,omitempty"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
	Version    string `json:"version,omitempty"`
}

type ocsfActor struct {
	User    *ocsfUser `json:"user,omitempty"`
	AppName string    `json:"app_name,omitempty"`
	AppUID  string    `json:"app_uid,omitempty"`
}

type ocsfUser struct {
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
}

type ocsfAPI struct {
	Operation string       `json:"operation"`
	Service   ocsfService  `json:"service"`
	Request   *ocsfUID     `json:"request,omitempty"`
	Response  *ocsfMessage `json:"response,omitempty"`
}

type ocsfService struct {
	Name string `json:"name"`
}

type ocsfUID struct {
	UID string `json:"uid"`
}

type ocsfMessage struct {
	Error string `json:"error"`
}

type ocsfEndpoint struct {
	IP       string `json:"ip,omitempty"`
	Port     int    `json:"port,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	Name     string `json:"name,omitempty"`
	SvcName  string `json:"svc_name,omitempty"`
}

type ocsfRequest struct {
	UserAgent string `json:"user_agent"`
}

type ocsfResource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// OCSF returns the row as an OCSF event; version is that of this program.
func (r *Row) OCSF(version string) *OCSF {
	o := &OCSF{
		ActivityID: ocsfOther, ActivityName: r.Action, CategoryUID: ocsfCategory, CategoryName: "Application Activity",
		ClassUID: ocsfClass, ClassName: "API Activity", Time: r.Time.UnixMilli(), Duration: int64(r.DurationMS),
		SeverityID: ocsfInformational, Severity: "Informational", StatusID: ocsfSuccess, Status: "Success", StatusDetail: r.ErrorClass,
		Metadata: ocsfMetadata{
			Version: ocsfVersion, Product: ocsfProduct{"Batchyard", "Batchyard", version}, TenantUID: r.Tenant, LogName: "audit_log",
			UID:        r.SrcTopic + "/" + strconv.Itoa(r.SrcPartition) + "@" + strconv.FormatInt(r.SrcOffset, 10) + "#" + strconv.Itoa(r.SrcIndex),
			LoggedTime: r.IngestedAt.UnixMilli(), Sequence: r.ChainSeq,
		},
		API: ocsfAPI{Operation: r.Action, Service: ocsfService{"Batchyard"}},
	}
	if a, ok := ocsfActivities[task.Action(r.Action)]; ok {
		o.ActivityID, o.ActivityName = a.id, a.name
	}
	o.TypeUID = 100*o.ClassUID + o.ActivityID
	if r.Outcome != string(task.OutcomeOK) {
		o.SeverityID, o.Severity, o.StatusID, o.Status = ocsfLow, "Low", ocsfFailure, "Failure"
		if r.Action == string(task.RecordDeadLettered) || r.Action == string(task.CallbackGivenUp) {
			o.SeverityID, o.Severity = ocsfMedium, "Medium"
		}
	}
	if r.TraceID != "" {
		o.API.Request = &ocsfUID{r.TraceID}
	}
	if r.ErrorClass != "" {
		o.API.Response = &ocsfMessage{r.ErrorClass}
	}
	if r.UserAgent != "" {
		o.HTTPRequest = &ocsfRequest{r.UserAgent}
	}
	o.who(r)
	o.what(r)
	return o
}

// who sets the actor and its endpoint. The schema requires both.
func (o *OCSF) who(r *Row) {
	name := r.ActorID
	if name == "" {
		name = "unknown"
	}
	if r.ActorType == string(task.ActorUser) {
		const typeUser = 1
		o.Actor.User = &ocsfUser{name, typeUser}
	} else {
		o.Actor.AppName, o.Actor.AppUID = r.ActorType, name
	}
	switch host, port, err := net.SplitHostPort(r.SourceAddr); {
	case strings.HasPrefix(r.SourceAddr, "kafka:"):
		o.SrcEndpoint.SvcName, o.SrcEndpoint.Name = "kafka", strings.TrimPrefix(r.SourceAddr, "kafka:")
	case err == nil && net.ParseIP(host) != nil:
		o.SrcEndpoint.IP = host
		o.SrcEndpoint.Port, _ = strconv.Atoi(port) // 0, and so omitted, for a name
	case net.ParseIP(r.SourceAddr) != nil:
		o.SrcEndpoint.IP = r.SourceAddr
	case r.SourceAddr != "":
		o.SrcEndpoint.Name = r.SourceAddr
	default: // a stage, by its name: stage@host-pid
		o.SrcEndpoint.Name = name
		if stage, rest, ok := strings.Cut(name, "@"); ok {
			o.SrcEndpoint.SvcName = stage
			if i := strings.LastIndexByte(rest, '-'); i > 0 {
				o.SrcEndpoint.Hostname = rest[:i]
			}
		}
	}
}

// what sets the resources, and everything that has no place elsewhere.
func (o *OCSF) what(r *Row) {
	add := func(kind, uid string) {
		for _, have := range o.Resources {
			if have.Type == kind && have.UID == uid {
				return
			}
		}
		if uid != "" {
			o.Resources = append(o.Resources, ocsfResource{kind, uid})
		}
	}
	add(r.ResourceType, r.ResourceID)
	add("task", r.TaskID)
	add("device", r.DeviceID)
	o.Unmapped = map[string]any{}
	for name, v := range map[string]string{
		"job_id": r.JobID, "batch_id": r.BatchID, "model": r.Model, "input_sha256": r.InputSHA256.String(), "output_sha256": r.OutputSHA256.String(),
		"src_topic": r.SrcTopic,
	} {
		if v != "" {
			o.Unmapped[name] = v
		}
	}
	for name, v := range map[string]int64{
		"attempt": int64(r.Attempt), "input_tokens": r.TokensIn, "output_tokens": r.TokensOut, "input_bytes": r.InputBytes, "output_bytes": r.OutputBytes,
	} {
		if v != 0 {
			o.Unmapped[name] = v
		}
	}
	if r.DurationMS != 0 {
		o.Unmapped["duration_ms"] = r.DurationMS
	}
	if json.Valid(r.Detail) {
		o.Unmapped["detail"] = r.Detail
	}
}

// AddChain adds the row's place in its chain to what the schema has no place for.
func (o *OCSF) AddChain(r *Row) {
	o.Unmapped["chain_seq"], o.Unmapped["prev_hash"], o.Unmapped["row_hash"] = r.ChainSeq, r.PrevHash, r.RowHash
}
