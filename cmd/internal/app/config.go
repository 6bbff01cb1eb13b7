package app

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/batcher"
	"github.com/batchyard/batchyard/callbacks"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// Config holds every setting. The package that uses a setting declares it; config.yaml and
// docs/configuration.md are generated from these structs.
type Config struct {
	Log       LogConfig         `yaml:"log" doc:"Logging."`
	Kafka     stream.Config     `yaml:"kafka" doc:"Connection to Kafka, and the topics."`
	Redis     store.RedisConfig `yaml:"redis" doc:"Connection to Redis, which holds heartbeats, credits and claims: short-lived state that can be rebuilt."`
	Postgres  PostgresConfig    `yaml:"postgres" doc:"Connection to Postgres, which holds the audit log, task states and results."`
	Task      producer.Config   `yaml:"task" doc:"Limits of tasks and submits."`
	Jobs      jobs.Config       `yaml:"jobs" doc:"Limits of job files."`
	Files     files.Config      `yaml:"files" doc:"Uploaded files, and the batches that are made of them."`
	API       api.Config        `yaml:"api" doc:"HTTP API."`
	Devices   DevicesConfig     `yaml:"devices" doc:"Devices, and their state in Redis."`
	Router    router.Config     `yaml:"router" doc:"Choice of devices, order of tasks, and credits."`
	Batcher   batcher.Config    `yaml:"batcher" doc:"Grouping of tasks into batches."`
	Workers   workers.Config    `yaml:"workers" doc:"Requests to devices, retries and circuit breakers."`
	Audit     recorder.Config   `yaml:"audit" doc:"Recording of events and results in Postgres."`
	Status    status.Config     `yaml:"status" doc:"Requests that wait for a task to finish."`
	Callbacks callbacks.Config  `yaml:"callbacks" doc:"Delivery of results as webhooks."`
	Ops       OpsConfig         `yaml:"ops" doc:"Health and metrics of processes that do not run the API."`
	Stall     time.Duration     `yaml:"stall_timeout" default:"2m" min:"1s" max:"24h" doc:"If something that could go on has not moved for so long, its stage is not ready, and batchyard_stage_stalled is 1. See docs/operations.md for what may take longer."`
	Version   string            `yaml:"-"` // of the program, for the API and logs
	Drain     time.Duration     `yaml:"drain_timeout" default:"28s" min:"1s" doc:"After SIGTERM, the process exits within this time even if something hangs."`
}

// DevicesConfig configures the devices.
type DevicesConfig struct {
	store.Config `yaml:",inline"`

	List []access.Device `yaml:"list" live:"true" doc:"Devices that run no agent: a process with the stage api reports them. For a device that reports itself, an entry without url says how to reach it."`
}

// LogConfig configures logging.
type LogConfig struct {
	Level  string `yaml:"level" live:"true" default:"info" enum:"debug,info,warn,error" doc:"Least severe level that is logged."`
	Format string `yaml:"format" default:"text" enum:"text,json" doc:"Format of log lines on standard error."`
}

// PostgresConfig configures the connection to Postgres.
type PostgresConfig struct {
	URL      string        `yaml:"url" default:"postgres://batchyard@127.0.0.1:5432/batchyard" secret:"true" doc:"Connection URL. Keep the password out of the file: set BATCHYARD_POSTGRES_URL, PGPASSWORD or use a .pgpass file."`
	MaxConns int           `yaml:"max_conns" default:"16" unit:"connections" min:"2" max:"1000" doc:"Maximum number of connections per process."`
	Timeout  time.Duration `yaml:"timeout" default:"5s" min:"100ms" doc:"Timeout for connecting, and for waiting for a free connection."`
}

// parse parses the URL. It hides the library's error, which may contain the password.
func (c PostgresConfig) parse() (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil || c.URL == "" {
		return nil, errors.New("postgres.url: not a Postgres URL: use postgres://user@host:5432/database")
	}
	return pc, nil
}

// OpsConfig configures the listener of processes that do not run the API.
type OpsConfig struct {
	Listen string `yaml:"listen" default:"" doc:"host:port of /healthz, /readyz and /metrics in processes without the api stage. Empty: off."`
}

// DefaultPath is the configuration file that is read if none is named and it exists.
const DefaultPath = "config.yaml"

// LoadConfig reads the file, then the environment (BATCHYARD_…), then overrides; later
// ones win. An empty path means [DefaultPath] if that exists, otherwise the defaults. A
// *config.Error lists every problem, one per line.
func LoadConfig(path string, overrides map[string]string) (Config, error) {
	var cfg Config
	path, err := ConfigPath(path)
	if err != nil {
		return cfg, err
	}
	if err := config.Load(&cfg, config.Options{Path: path, Env: os.Environ(), Overrides: overrides}); err != nil {
		return cfg, err
	}
	var wrong config.Error
	for _, check := range []func() error{ // what struct tags cannot express
		func() error { _, err := policyOf(&cfg); return err },
		cfg.Callbacks.Check,
		func() error { return access.Check(cfg.Devices.List) },
		cfg.Kafka.Check,
		cfg.Files.Check,
		func() error { _, err := cfg.Postgres.parse(); return err },
	} {
		if err := check(); err != nil {
			wrong.Lines = append(wrong.Lines, err.Error())
		}
	}
	if len(wrong.Lines) > 0 {
		return cfg, &wrong
	}
	return cfg, nil
}

// ConfigPath returns the path, or for an empty one [DefaultPath] if that exists, otherwise
// "".
func ConfigPath(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	_, err := os.Stat(DefaultPath)
	switch {
	case err == nil:
		return DefaultPath, nil
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	}
	return "", fmt.Errorf("reading %s: %w", DefaultPath, err)
}

// policyOf returns the policy that the configuration sets.
func policyOf(cfg *Config) (device.PolicySetting, error) {
	p, err := device.NewPolicySetting(cfg.Router.Policy, cfg.Router.Binding, cfg.Router.Weights)
	var fe *task.FieldError
	if errors.As(err, &fe) { // use the names of the configuration file
		fe.Field = "router." + strings.NewReplacer("weights", "load_weights", "preset", "load_weights.preset").Replace(fe.Field)
	}
	return p, err
}
