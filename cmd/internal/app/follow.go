package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// Source is where the configuration came from, so that it can be read again.
type Source struct {
	Path  string // of the file; empty: watch nothing
	Load  func() (Config, error)
	Level *slog.LevelVar // of the logger; nil: it does not change
}

// Follow makes Run apply changes of the configuration file, for the settings that may
// change while the program runs. Call it before Run.
func (a *App) Follow(s Source) { a.source = s }

// devicesKey is the setting that lists devices.
const devicesKey = "devices.list"

// filePolicy returns the policy that the configuration file sets now.
func (a *App) filePolicy() device.PolicySetting { return *a.policy.Load() }

// follow watches the file until the returned function is called.
func (a *App) follow(ctx context.Context) (stop func()) {
	if a.source.Path == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := config.Watch(ctx, a.source.Path, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}, nil)
		if err != nil { // the process continues with the settings it has
			a.logger.Warn("cannot watch the configuration file: restart to apply changes", "file", a.source.Path, "error", err)
		}
	})
	wg.Go(func() { a.reloadChanges(ctx, changed) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// reloadRetry is how soon a file that was refused is read again: what was wrong may be in a file that it names, such
// as a key that was not there yet.
const reloadRetry = 5 * time.Second

// reloadChanges applies each change of the file until ctx ends. An error is logged once.
func (a *App) reloadChanges(ctx context.Context, changed <-chan struct{}) {
	running := a.cfg // with the changes applied since the start
	again := time.NewTimer(reloadRetry)
	defer again.Stop()
	again.Stop()
	said := ""
	for {
		select {
		case <-changed:
			said = ""
		case <-again.C:
		case <-ctx.Done():
			return
		}
		err := a.reload(ctx, &running)
		if err == nil {
			again.Stop()
			continue
		}
		again.Reset(reloadRetry)
		if err.Error() == said {
			continue
		}
		said = err.Error()
		lines := []string{said}
		var all *config.Error
		if errors.As(err, &all) {
			lines = all.Lines
		}
		for _, l := range lines {
			a.logger.Error("the changed configuration cannot be used: keeping the previous settings, and trying again", "file", a.source.Path, "error", l)
		}
	}
}

// reload reads the file again and applies the settings that may change. A file with any
// error changes nothing.
func (a *App) reload(ctx context.Context, running *Config) error {
	log := a.logger.With("file", a.source.Path)
	next, err := a.source.Load()
	if err != nil {
		return err
	}
	var live, restart []string
	for _, c := range config.Changes(running, &next) {
		if c.Key == devicesKey { // may hold keys
			c.Old, c.New = fmt.Sprint(len(running.Devices.List), " devices"), fmt.Sprint(len(next.Devices.List), " devices")
		}
		if c.Live {
			live = append(live, c.Key+": "+c.Old+" → "+c.New)
		} else {
			restart = append(restart, c.Key)
		}
	}
	if len(live) == 0 {
		warnRestart(log, restart)
		return nil
	}
	policy, err := policyOf(&next) // Load has checked it
	if err == nil && a.router != nil {
		err = a.router.Reload(next.Router)
	}
	if err == nil {
		err = a.setDevices(ctx, next.Devices.List)
	}
	if err != nil {
		return err
	}
	warnRestart(log, restart)
	if a.batcher != nil {
		a.batcher.Reload(next.Batcher)
	}
	config.Adopt(running, &next)
	if a.source.Level != nil {
		setLevel(a.source.Level, running.Log)
	}
	before := a.policy.Swap(&policy)
	log.Info("applied changed settings", "changed", strings.Join(live, ", "))
	if !before.Same(&policy) {
		a.recordReload(ctx, before, &policy)
	}
	return nil
}

func warnRestart(log *slog.Logger, settings []string) {
	if len(settings) > 0 {
		log.Warn("restart to apply changed settings", "settings", strings.Join(settings, ", "))
	}
}

// recordReload writes the event of a policy change. Only processes that use or report the
// policy write it.
func (a *App) recordReload(ctx context.Context, before, now *device.PolicySetting) {
	if !slices.Contains(a.names, "router") && !slices.Contains(a.names, "api") {
		return
	}
	e := task.Event{Action: task.ConfigReloaded, ResourceType: "config", ResourceID: "router.policy"}
	a.record(ctx, e, map[string]any{"old": before, "new": now, "file": a.source.Path})
}

// recordWait limits how long an event of the process waits until Kafka has it.
const recordWait = 10 * time.Second

// record writes an event of the process, also while it is stopping. If Kafka does not take it in time, the log
// says so.
func (a *App) record(ctx context.Context, e task.Event, detail any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWait)
	defer cancel()
	e.Outcome, e.Tenant, e.ActorType, e.ActorID = task.OutcomeOK, task.DefaultTenant, task.ActorStage, a.actor("serve")
	p := a.Producer()
	err := p.RecordNow(ctx, e, detail)
	if err = errors.Join(err, p.Close(ctx)); err != nil {
		a.logger.Warn("could not record an event of this process: it may be missing from the audit log", "action", e.Action, "error", err)
	}
}
