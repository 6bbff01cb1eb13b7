// Package local runs all of Batchyard in one process: broker, Redis, Postgres, all stages,
// and agents that report devices. `batchyard run` and `batchyard dev` are built on it.
//
//	embedded services ──▶ schema, topics ──▶ stages (package app) ──▶ agents ──▶ devices
//
// With a data directory, unfinished tasks continue after a restart. If the process dies,
// its services end too: see package embedded.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/batchyard/batchyard/agent"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
)

// Options are the options of Start.
type Options struct {
	ConfigPath string            // configuration file; may be empty; the embedded services override its addresses
	Follow     bool              // apply changes of that file while running
	Overrides  map[string]string // settings by key; they override the file
	DataDir    string            // empty: a temporary directory
	Version    string            // of the program
	Listen     string            // address of the API; empty: a free port on loopback, unless Configured
	Configured bool              // use api.listen of the configuration if Listen is empty
	Devices    []access.Device   // beside those of the configuration; if there are none at all, a simulated fleet answers
	Fleet      []fleet.Spec      // the simulated fleet; nil: fleet.Default()
	NoDevices  bool              // start no devices and no agents
	// Absent is called when a device does not answer, at the start or later, with the cause in its Problem; Present when it
	// answers again. nil: it is only logged.
	Absent   func(d device.Device)
	Present  func(d device.Device)
	Logger   *slog.Logger
	Progress func(step string)
}

// System is a running Batchyard.
type System struct {
	App    *app.App
	Config app.Config
	Stack  *embedded.Stack
	Fleet  *fleet.Fleet // nil without simulated devices
	URL    string       // of the API

	logger *slog.Logger
	stop   context.CancelFunc // of the stages
	ended  chan struct{}      // closed when the stages have ended
	end    error              // of the stages; set before ended is closed
	agents sync.WaitGroup     // and what watches the devices
	quit   context.CancelFunc // of the agents and the fleet
	once   sync.Once
	err    error
}

// partitions of each topic: enough for the cores of one machine.
const partitions = 6

// Start starts everything and returns when all stages are ready. ctx limits only the
// start; Close stops the system.
func Start(ctx context.Context, o Options) (_ *System, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	say := o.Progress
	if say == nil {
		say = func(string) {}
	}
	s := &System{logger: o.Logger, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Stack, err = embedded.Start(ctx, embedded.Options{DataDir: o.DataDir, Logger: o.Logger, Progress: say}); err != nil {
		return nil, fmt.Errorf("starting the embedded services: %w", err)
	}
	if s.Config, err = app.LoadConfig(o.ConfigPath, s.settings(o)); err != nil {
		return nil, err
	}
	s.Config.Version = o.Version
	s.addDevices(&s.Config, o)
	say("preparing schema and topics")
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	say("starting the stages")
	if s.App, err = app.New(ctx, s.Config, nil, o.Logger); err != nil {
		return nil, err
	}
	s.App.Alone = true
	if o.Follow {
		path, err := app.ConfigPath(o.ConfigPath)
		if err != nil {
			return nil, err
		}
		s.App.Follow(app.Source{Path: path, Load: func() (app.Config, error) {
			cfg, err := app.LoadConfig(path, s.settings(o))
			s.addDevices(&cfg, o)
			return cfg, err
		}})
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	say("starting the devices")
	return s, s.startDevices(ctx, o)
}

// addDevices adds the devices of the options to those of a configuration. An entry of the same name is replaced.
func (*System) addDevices(cfg *app.Config, o Options) {
	if o.NoDevices {
		cfg.Devices.List = nil
		return
	}
	list := slices.DeleteFunc(slices.Clone(cfg.Devices.List), func(d access.Device) bool {
		return slices.ContainsFunc(o.Devices, func(given access.Device) bool { return given.Name == d.Name })
	})
	cfg.Devices.List = append(list, o.Devices...)
}

// settings returns the overrides that point the configuration at the embedded services.
func (s *System) settings(o Options) map[string]string {
	set := map[string]string{
		"kafka.brokers":            strings.Join(s.Stack.Brokers, ","),
		"kafka.partitions":         fmt.Sprint(partitions),
		"kafka.replication":        "1",
		"redis.addr":               s.Stack.RedisAddr,
		"postgres.url":             s.Stack.PostgresURL,
		"audit.checkpoint_dir":     filepath.Join(s.Stack.DataDir, "audit-checkpoints"),
		"files.url":                filepath.Join(s.Stack.DataDir, "files"),
		"callbacks.allow_private":  "true",
		"callbacks.unsigned":       "true",
		"kafka.session_timeout":    "6s",
		"kafka.heartbeat_interval": "300ms",
	}
	switch {
	case o.Listen != "":
		set["api.listen"] = o.Listen
	case !o.Configured:
		set["api.listen"] = "127.0.0.1:0"
	}
	for k, v := range o.Overrides {
		set[k] = v
	}
	return set
}

func (s *System) prepare(ctx context.Context) error {
	if err := migrations.Up(ctx, s.Config.Postgres.URL); err != nil {
		return err
	}
	log, err := stream.Open(ctx, s.Config.Kafka, s.logger, nil)
	if err != nil {
		return err
	}
	_, err = log.CreateTopics(ctx)
	return errors.Join(err, log.Close())
}

// start runs the stages and waits until they are ready.
func (s *System) start(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	ready := make(chan struct{})
	go func() {
		defer close(s.ended)
		s.end = s.App.Run(running, func() { close(ready) })
	}()
	select {
	case <-ready:
		s.URL = "http://" + s.App.Address()
		return nil
	case <-s.ended:
		return errors.New("the stages ended while they started") // Close returns the cause
	case <-ctx.Done():
		return fmt.Errorf("starting the stages: %w", ctx.Err())
	}
}

func (s *System) startDevices(ctx context.Context, o Options) error {
	background, quit := context.WithCancel(context.WithoutCancel(ctx))
	s.quit = quit
	if o.NoDevices {
		return nil
	}
	var agents []agent.Config
	if len(s.Config.Devices.List) == 0 {
		specs := o.Fleet
		if specs == nil {
			specs = fleet.Default()
		}
		var err error
		if s.Fleet, err = fleet.Start(background, specs); err != nil {
			return fmt.Errorf("starting the simulated devices: %w", err)
		}
		for _, d := range s.Fleet.Devices() {
			spec := d.Spec()
			models := spec.Models
			if len(models) == 0 {
				models = []string{"*"}
			}
			agents = append(agents, agent.Config{ID: d.ID(), URL: d.URL(), Models: models, Tags: spec.Tags, Slots: spec.Slots, Server: s.URL})
		}
	}
	for _, c := range agents {
		s.agents.Go(func() {
			if err := agent.Run(background, c, s.logger); err != nil {
				s.logger.Error("an agent ended", "device_id", c.ID, "error", err)
			}
		})
	}
	n := len(agents)
	for _, d := range s.Config.Devices.List {
		if d.URL != "" {
			n++
		}
	}
	s.watchDevices(background, n, o)
	return ctx.Err()
}

// Ended is closed when the stages have ended, because of Close or of an error, which Close
// returns.
func (s *System) Ended() <-chan struct{} { return s.ended }

// Close drains the stages and stops everything. Later calls return the same error.
func (s *System) Close() error {
	s.once.Do(func() {
		var errs []error
		if s.quit != nil {
			s.quit()
		}
		s.agents.Wait() // while the API is up, so that the devices can leave
		if s.stop != nil {
			s.stop()
			<-s.ended
			errs = append(errs, s.end)
		}
		if s.Fleet != nil {
			s.Fleet.Close()
		}
		if s.Stack != nil {
			errs = append(errs, s.Stack.Close())
		}
		s.err = errors.Join(errs...)
	})
	return s.err
}
