package api

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// Store answers questions about tasks. The audit store is one. An error that is
// not status.ErrNotFound or status.ErrBadCursor means that nobody can tell now.
type Store interface {
	Task(ctx context.Context, key task.Key) (*status.TaskRow, error)
	WaitTask(ctx context.Context, key task.Key) (*status.TaskRow, error)
	Tasks(ctx context.Context, f status.Filter) (rows []status.TaskRow, next string, err error)
	JobCounts(ctx context.Context, tenant, job string) (status.JobCounts, error)
	JobResults(ctx context.Context, tenant, job string, fn func(*task.Result) error) error
	Events(ctx context.Context, key task.Key) ([]status.EventRow, error)
}

// Producer takes tasks in.
type Producer interface {
	Submit(ctx context.Context, tasks []*task.Task, o task.Origin) error
	Cancel(ctx context.Context, r *producer.Recent, o task.Origin) error
	Recent(ctx context.Context, key task.Key) (*producer.Recent, bool, error)
	Rerank(ctx context.Context, r *producer.Recent, from producer.Standing, change device.Repriority, o task.Origin) error
	Record(ctx context.Context, e task.Event, detail map[string]any) error
	RecordNow(ctx context.Context, e task.Event, detail any) error
	Config() producer.Config
}

// Registry knows the devices.
type Registry interface {
	Beat(ctx context.Context, d device.Device) (joined bool, err error)
	Left(ctx context.Context, id string) (was bool, err error)
	List(ctx context.Context) ([]device.Device, error)
}

// Control holds what operators say while Batchyard runs.
type Control interface {
	Load(ctx context.Context) (device.Settings, error)
	SetPolicy(ctx context.Context, p *device.PolicySetting) (before *device.PolicySetting, err error)
	Drain(ctx context.Context, id string, on bool) (changed bool, err error)
}

// Marks knows which waiting tasks were cancelled or rank anew.
type Marks interface {
	Marks(ctx context.Context, keys ...task.Key) ([]device.Mark, error)
}

// Rates knows what was learned of devices.
type Rates interface {
	Load(ctx context.Context) (map[device.RateKey]device.Rate, map[string]device.Health, error)
}

// Credits knows how many tasks devices have.
type Credits interface {
	Used(ctx context.Context, pools []string) ([]int, error)
}

// Check is a dependency that readiness asks.
type Check struct {
	Name string
	Ping func(ctx context.Context) error
}

// Deps is what the API stands on.
type Deps struct {
	Producer Producer
	Store    Store
	Registry Registry
	Control  Control
	Marks    Marks
	Rates    Rates
	Credits  Credits
	Policy   func() device.PolicySetting // of this process's file, as it is now
	Checks   []Check                     // asked by /readyz
	Gatherer prometheus.Gatherer         // served as /metrics; nil: none
	Metrics  *metrics.Metrics
	Logger   *slog.Logger
	Version  string // of the program, for the description
}
