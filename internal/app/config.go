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
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// Config is every setting. Each is declared once, by the package that uses it;
// config.yaml and docs/configuration.md are written from these structs.
type Config struct {
	Log       LogConfig          `yaml:"log" doc:"What this program says of itself."`
	Kafka     stream.Config      `yaml:"kafka" doc:"The log that tasks travel in."`
	Redis     device.RedisConfig `yaml:"redis" doc:"Heartbeats, credits and claims: what may be forgotten."`
	Postgres  PostgresConfig     `yaml:"postgres" doc:"The audit log, states and results: what people ask about."`
	Task      producer.Config    `yaml:"task" doc:"Bounds of a task and of a submit."`
	Jobs      jobs.Config        `yaml:"jobs" doc:"Files of many tasks."`
	API       api.Config         `yaml:"api" doc:"The HTTP API."`
	Devices   device.Config      `yaml:"devices" doc:"What is kept of devices."`
	Router    router.Config      `yaml:"router" doc:"Where tasks run."`
	Batcher   batcher.Config     `yaml:"batcher" doc:"How tasks are grouped."`
	Workers   workers.Config     `yaml:"workers" doc:"How requests are run, tried again and given up."`
	Audit     recorder.Config    `yaml:"audit" doc:"How events and results are recorded."`
	Status    status.Config      `yaml:"status" doc:"Requests that wait for a task to finish."`
	Callbacks callbacks.Config   `yaml:"callbacks" doc:"How users are told of results."`
	Ops       OpsConfig          `yaml:"ops" doc:"Health and metrics of processes without the API stage."`
	Version   string             `yaml:"-"` // of the program, for descriptions and logs
	Drain     time.Duration      `yaml:"drain_timeout" default:"28s" min:"1s" doc:"After SIGTERM, the process ends within this time whatever hangs."`
}

// LogConfig is how the program logs.
type LogConfig struct {
	Level  string `yaml:"level" live:"true" default:"info" enum:"debug,info,warn,error" doc:"Least level that is written."`
	Format string `yaml:"format" default:"text" enum:"text,json" doc:"Form of the lines on standard error."`
}

// PostgresConfig says where Postgres is.
type PostgresConfig struct {
	URL      string        `yaml:"url" default:"postgres://batchyard@127.0.0.1:5432/batchyard" secret:"true" doc:"Connection URL. Keep the password out of the file: set BATCHYARD_POSTGRES_URL, PGPASSWORD or a .pgpass file."`
	MaxConns int           `yaml:"max_conns" default:"16" unit:"connections" min:"2" max:"1000" doc:"Connections of one process."`
	Timeout  time.Duration `yaml:"timeout" default:"5s" min:"100ms" doc:"How long to wait for a connection."`
}

// parse reads the URL. The library's error may hold it with its password.
func (c PostgresConfig) parse() (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil || c.URL == "" {
		return nil, errors.New("postgres.url: it is no Postgres URL; use postgres://user@host:5432/database")
	}
	return pc, nil
}

// OpsConfig is the listener of processes that do not run the API.
type OpsConfig struct {
	Listen string `yaml:"listen" default:"" doc:"host:port of /healthz, /readyz and /metrics in a process without the api stage; empty: none."`
}

// DefaultPath is read when no file is named and it is there.
const DefaultPath = "config.yaml"

// LoadConfig reads the file, the environment (BATCHYARD_…) and overrides, in
// this order. An empty path stands for config.yaml if it is there, else for
// defaults. The error lists everything that is wrong, a line each.
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
	for _, check := range []func() error{ // what tags cannot say
		func() error { _, err := policyOf(&cfg); return err },
		cfg.Callbacks.Check,
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

// ConfigPath is the file that an empty path stands for: config.yaml if it is
// there, else none.
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

// policyOf is how the configuration wants devices to be chosen.
func policyOf(cfg *Config) (device.PolicySetting, error) {
	p, err := device.NewPolicySetting(cfg.Router.Policy, cfg.Router.Binding, cfg.Router.Weights)
	var fe *task.FieldError
	if errors.As(err, &fe) { // as the file names it
		fe.Field = "router." + strings.NewReplacer("weights", "load_weights", "preset", "load_weights.preset").Replace(fe.Field)
	}
	return p, err
}
