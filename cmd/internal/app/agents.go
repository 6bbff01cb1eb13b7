package app

import (
	"context"
	"log/slog"
	"sync"

	"github.com/batchyard/batchyard/agent"
	"github.com/batchyard/batchyard/device/access"
)

// agents report the devices of the configuration to the API of this process. Every process with an API reports all of
// them, which does no harm: they say the same. So no device leaves when one of these processes ends; if no other one
// reports it, it falls silent.
type agents struct {
	book   *access.Book
	server string
	stay   bool
	logger *slog.Logger

	mu      sync.Mutex
	running map[string]*reporting // by name
	wg      sync.WaitGroup
}

// reporting is the agent of one device.
type reporting struct {
	device access.Device
	stop   context.CancelCauseFunc
	ended  chan struct{}
}

func newAgents(server string, stay bool, logger *slog.Logger) *agents { //nolint:revive // stay is a setting
	return &agents{book: agent.NewBook(), server: server, stay: stay, logger: logger, running: map[string]*reporting{}}
}

// Set makes the agents report these devices, and no others. A device that is described as before is left alone; one that
// is gone leaves.
func (a *agents) Set(ctx context.Context, devices []access.Device) error {
	if err := a.book.Load(devices); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	wanted := map[string]bool{}
	for _, d := range devices {
		d = d.WithDefaults()
		if d.URL == "" {
			continue // an agent elsewhere reports it
		}
		wanted[d.Name] = true
		if r := a.running[d.Name]; r != nil {
			if r.device.Same(&d) {
				continue
			}
			r.end(agent.ErrStay) // it is only described otherwise: what waits for it may go on waiting
		}
		a.running[d.Name] = a.start(ctx, d)
	}
	for name, r := range a.running {
		if !wanted[name] {
			r.end(agent.ErrLeave)
			delete(a.running, name)
		}
	}
	return nil
}

func (a *agents) start(ctx context.Context, d access.Device) *reporting {
	ctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &reporting{device: d, stop: stop, ended: make(chan struct{})}
	cfg := agent.Of(&d, a.book)
	cfg.Remote = agent.IsRemote(cfg.URL)
	cfg.Server, cfg.Stay = a.server, a.stay
	a.wg.Go(func() {
		defer close(r.ended)
		if err := agent.Run(ctx, cfg, a.logger); err != nil {
			a.logger.Error("an agent ended", "device_id", d.Name, "error", err)
		}
	})
	return r
}

// end stops the agent, and waits until it has.
func (r *reporting) end(cause error) {
	r.stop(cause)
	<-r.ended
}

// Close stops all agents.
func (a *agents) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.running {
		r.stop(nil)
	}
	a.wg.Wait()
	a.book.CloseIdle()
}

// reportDevices starts the agents of the configured devices, if this process has the API, until the returned function
// is called.
func (a *App) reportDevices(ctx context.Context) (stop func()) {
	if a.stage("api") == nil {
		return func() {}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.agents = newAgents("http://"+a.Address(), !a.Alone, a.logger.With("part", "agent"))
	if err := a.agents.Set(ctx, a.list); err != nil { // a file may have changed since the configuration was checked
		a.logger.Error("the devices of the configuration are not reported", "error", err)
	}
	return a.agents.Close
}

// setDevices replaces the devices of the configuration while the process runs.
func (a *App) setDevices(ctx context.Context, list []access.Device) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := access.Check(list); err != nil {
		return err
	}
	if a.workers != nil {
		if err := a.workers.SetDevices(list); err != nil {
			return err
		}
	}
	a.list = list
	if a.agents == nil {
		return nil
	}
	return a.agents.Set(ctx, list)
}
