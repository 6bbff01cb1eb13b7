package api

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/api/openai/plain"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Store reads tasks, jobs, results and events. Any error but status.ErrNotFound,
// status.ErrNoJob and status.ErrBadCursor means that Postgres does not answer.
type Store interface {
	Task(ctx context.Context, key task.Key) (*status.TaskRow, error)
	WaitTask(ctx context.Context, run task.Run) (*status.TaskRow, error)
	Tasks(ctx context.Context, f status.Filter) (rows []status.TaskRow, next string, err error)
	Job(ctx context.Context, tenant, job string) (*task.Job, error)
	Jobs(ctx context.Context, f status.JobFilter) (jobs []task.Job, next string, err error)
	JobTasks(ctx context.Context, job task.Key, in []task.State, after string, limit int) ([]status.TaskRow, error)
	JobGroups(ctx context.Context, job task.Key, limit int) ([]status.Group, error)
	JobResults(ctx context.Context, tenant, job string, fn func(*task.Result) error) error
	Events(ctx context.Context, key task.Key) ([]status.EventRow, error)
	Known(ctx context.Context, keys []task.Key) ([]task.Known, error)
	Records(ctx context.Context, key task.Key) ([]status.Position, error)
}

// Producer writes tasks and events to Kafka, and remembers the newest tasks.
type Producer interface {
	RecentJob(ctx context.Context, key task.Key) (*task.Job, bool, error)
	AnnounceJob(ctx context.Context, s *task.JobSpec, o task.Origin) error
	Accept(ctx context.Context, tasks []*task.Task, o task.Origin) ([]task.State, error)
	AcceptNew(ctx context.Context, t *task.Task, o task.Origin) error
	Retry(ctx context.Context, r producer.Retry, o task.Origin) error
	Cancel(ctx context.Context, r *producer.Recent, o task.Origin) error
	Recent(ctx context.Context, key task.Key) (*producer.Recent, bool, error)
	Reprioritize(ctx context.Context, r *producer.Recent, from producer.PriorityLevel, change device.PriorityChange, o task.Origin) error
	Record(ctx context.Context, e task.Event, detail map[string]any) error
	RecordNow(ctx context.Context, e task.Event, detail any) error
	Config() producer.Config
}

// Registry holds the devices that send heartbeats.
type Registry interface {
	Beat(ctx context.Context, d device.Device) (store.Beaten, error)
	Left(ctx context.Context, id string) (was bool, err error)
	List(ctx context.Context) ([]device.Device, error)
}

// Presence knows which devices are served by a batcher and a worker.
type Presence interface {
	Mark(ctx context.Context, devices []device.Device) error
	Read(ctx context.Context, topic, key string) (store.Read, error)
}

// Control holds what operators set while Batchyard runs.
type Control interface {
	Load(ctx context.Context) (device.Settings, error)
	SetPolicy(ctx context.Context, p *device.PolicySetting) (before *device.PolicySetting, err error)
	Drain(ctx context.Context, id string) (changed bool, err error)
	Undrain(ctx context.Context, id string) (changed bool, err error)
}

// Overrides reads what operators said about waiting tasks: cancelled, or reprioritized.
type Overrides interface {
	Get(ctx context.Context, keys ...task.Key) ([]device.Override, error)
}

// Rates holds what routers and workers learned about devices.
type Rates interface {
	Load(ctx context.Context) (map[device.RateKey]device.Rate, map[string]device.Health, error)
}

// Credits counts the tasks at each device.
type Credits interface {
	Used(ctx context.Context, pools []string) ([]int, error)
}

// Check is a dependency that /readyz pings.
type Check struct {
	Name string
	Ping func(ctx context.Context) error
	Note func() string // what an operator should know although it answers; empty: nothing. nil: never anything
}

// State is the state of a dependency that answers.
func (c *Check) State() string {
	if c.Note != nil {
		if note := c.Note(); note != "" {
			return "ok, but " + note
		}
	}
	return "ok"
}

// Deps are what the API talks to.
type Deps struct {
	Producer  Producer
	Store     Store
	Registry  Registry
	Presence  Presence // nil: all devices are served
	Control   Control
	Overrides Overrides
	Rates     Rates
	Credits   Credits
	Arrivals  plain.Arrivals              // tells of results as they are written; nil: they are looked up in Postgres
	Policy    func() device.PolicySetting // the policy of this process's configuration file, as it is now
	Checks    []Check                     // pinged by /readyz
	Gatherer  prometheus.Gatherer         // served as /metrics; nil: none
	Metrics   *metrics.Metrics
	Logger    *slog.Logger
	Version   string // of the program, for the description
	OpenAI    []openai.Route
}
