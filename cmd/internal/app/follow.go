package app

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// Source is where the configuration came from, and can be read again.
type Source struct {
	Path  string // of the file; empty: no file, and nothing is watched
	Load  func() (Config, error)
	Level *slog.LevelVar // of the logger; nil: it stays
}

// Follow makes Run take over what changes in the configuration's file, as far as
// it may change while the program runs. Call it before Run.
func (a *App) Follow(s Source) { a.source = s }

// filePolicy is how the configuration's file wants devices to be chosen, now.
func (a *App) filePolicy() device.PolicySetting { return *a.policy.Load() }

// follow watches the file until the returned function is called.
func (a *App) follow(ctx context.Context) (stop func()) {
	if a.source.Path == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	running := a.cfg // with what has been taken over since the start
	var wg sync.WaitGroup
	wg.Go(func() {
		err := config.Watch(ctx, a.source.Path, func() { a.reload(ctx, &running) }, nil)
		if err != nil { // it goes on by what it has
			a.logger.Warn("changes of the configuration's file are not seen; restart to have them", "file", a.source.Path, "error", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// reload reads the file again and takes over what may change. A file that is
// wrong in any way changes nothing at all.
func (a *App) reload(ctx context.Context, running *Config) {
	log := a.logger.With("file", a.source.Path)
	next, err := a.source.Load()
	if err != nil {
		lines := []string{err.Error()}
		var all *config.Error
		if errors.As(err, &all) {
			lines = all.Lines
		}
		for _, l := range lines {
			log.Error("the configuration's file has changed and is wrong; everything goes on as before", "wrong", l)
		}
		return
	}
	var live, restart []string
	for _, c := range config.Changes(running, &next) {
		if c.Live {
			live = append(live, c.Key+": "+c.Old+" → "+c.New)
		} else {
			restart = append(restart, c.Key)
		}
	}
	if len(restart) > 0 {
		log.Warn("settings were changed in the file that only a restart takes over", "settings", strings.Join(restart, ", "))
	}
	if len(live) == 0 {
		return
	}
	policy, err := policyOf(&next) // Load has checked it
	if err == nil && a.router != nil {
		err = a.router.Reload(next.Router)
	}
	if err != nil {
		log.Error("the configuration's file has changed and is wrong; everything goes on as before", "wrong", err)
		return
	}
	config.Adopt(running, &next)
	if a.source.Level != nil {
		setLevel(a.source.Level, running.Log)
	}
	before := a.policy.Swap(&policy)
	log.Info("settings were changed in the file and apply now", "changed", strings.Join(live, ", "))
	if !before.Same(&policy) {
		a.recordReload(ctx, before, &policy)
	}
}

// recordWait bounds how long a reload waits for Kafka to take its event.
const recordWait = 10 * time.Second

// recordReload tells the audit log that devices are chosen by another policy
// because of the file. Only processes that choose, or tell how it is chosen, do.
func (a *App) recordReload(ctx context.Context, before, now *device.PolicySetting) {
	if !slices.Contains(a.names, "router") && !slices.Contains(a.names, "api") {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWait)
	defer cancel()
	p := a.Producer()
	e := task.Event{
		Action: task.ConfigReloaded, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage, ActorID: a.actor("serve"),
		ResourceType: "config", ResourceID: "router.policy",
	}
	err := p.RecordNow(ctx, e, map[string]any{"old": before, "new": now, "file": a.source.Path})
	if err = errors.Join(err, p.Close(ctx)); err != nil {
		a.logger.Warn("that the policy was changed by the file may be missing in the audit log", "error", err)
	}
}
