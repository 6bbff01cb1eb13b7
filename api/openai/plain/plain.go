// Package plain answers OpenAI's plain requests: a request becomes a task of high priority, and its caller
// waits for the task's result.
//
//	POST ─▶ checked ─▶ expected (arrivals) ─▶ accepted (producer) ─▶ … ─▶ topic results ─▶ answer
//	           │                                  │                            │ not heard of in time
//	           ▼                                  ▼                            ▼
//	       refused                     client gone: cancelled              Postgres
//
// # Promises
//
// The result is heard of as it arrives in Kafka. If that does not work, Postgres has it. If this process
// dies, the task ends all the same; a client that sent an Idempotency-Key gets its answer by sending the
// request again.
//
// A client that goes away cancels its task, unless others wait here for the same one. How long a request
// waits, how many wait at once, and their bodies are bounded.
//
// Errors have OpenAI's form; what a device says of a request that it refuses is passed on as it is.
package plain

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/api/bodies"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/status/arrivals"
	"github.com/batchyard/batchyard/task"
)

// Store knows tasks that were recorded, and waits for them.
type Store interface {
	Task(ctx context.Context, key task.Key) (*status.TaskRow, error)
	WaitTask(ctx context.Context, run task.Run) (*status.TaskRow, error)
	Known(ctx context.Context, keys []task.Key) ([]task.Known, error)
	Records(ctx context.Context, key task.Key) ([]status.Position, error)
}

// Producer writes tasks and cancels them.
type Producer interface {
	Accept(ctx context.Context, tasks []*task.Task, o task.Origin) ([]task.State, error)
	AcceptNew(ctx context.Context, t *task.Task, o task.Origin) error
	Retry(ctx context.Context, r producer.Retry, o task.Origin) error
	Cancel(ctx context.Context, r *producer.Recent, o task.Origin) error
	Config() producer.Config
}

// Registry knows the devices.
type Registry interface {
	List(ctx context.Context) ([]device.Device, error)
}

// Arrivals tells of results as they are written.
type Arrivals interface {
	Expect(ctx context.Context, run task.Run, print task.Fingerprint) *arrivals.Arrival
}

// Deps are what requests go through.
type Deps struct {
	Producer Producer
	Store    Store
	Registry Registry
	Arrivals Arrivals // nil: results are looked up in Postgres only
	Bodies   *bodies.Budget
	Stopping <-chan struct{} // closed when the server drains
	Metrics  *metrics.API
	Logger   *slog.Logger
}

// Config bounds requests.
type Config struct {
	Timeout  time.Duration // for an answer
	Longest  time.Duration // that a client can ask for
	Waiting  int64         // requests at once
	Submit   time.Duration // for Kafka to take a task
	Query    time.Duration // for a query to Postgres or Redis
	LookUp   time.Duration // after which Postgres is asked too; 0: 2 s
	LastWait time.Duration // for requests that wait when the server begins to drain
}

// Server answers plain requests.
type Server struct {
	deps    Deps
	cfg     Config
	waiting *semaphore.Weighted
	models  models

	mu     sync.Mutex
	shared map[task.Key]int // how many requests wait for a task
}

// New returns a server.
func New(d Deps, cfg Config) *Server {
	if cfg.LookUp == 0 {
		cfg.LookUp = 2 * time.Second
	}
	return &Server{deps: d, cfg: cfg, waiting: semaphore.NewWeighted(cfg.Waiting), models: models{registry: d.Registry, timeout: cfg.Query}, shared: map[task.Key]int{}}
}

// Caller is who sent a request.
type Caller struct {
	Tenant string
	Origin task.Origin
	Trace  string
}

// Ended says how a request ended, for the audit log.
type Ended struct {
	Accepted bool   // as a task, whose events say the rest
	Refused  string // why it was not
}

// Handler answers a request.
type Handler func(w http.ResponseWriter, r *http.Request, who Caller) Ended

// refuse answers with an error.
func refuse(w http.ResponseWriter, err error) Ended {
	e := asError(err)
	e.Write(w)
	return Ended{Refused: e.Reason.Message}
}

// join counts one more request that waits for a task.
func (s *Server) join(k task.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared[k]++
}

// leave reports whether it was the last.
func (s *Server) leave(k task.Key) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared[k]--; s.shared[k] > 0 {
		return false
	}
	delete(s.shared, k)
	return true
}
