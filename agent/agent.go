package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// state is what the last try came to; each change of it is logged once.
type state string

const (
	starting   state = "starting"
	beating    state = "beating"
	deviceAway state = "device away"
	serverAway state = "server away"
	refused    state = "refused"
)

// agent is one run. One goroutine uses it.
type agent struct {
	cfg    Config
	log    *slog.Logger
	device device
	server server
	host   host
	state  state
	joined bool // the server took a beat, so there is something to leave
	pause  *backoff.ExponentialBackOff
}

// Run reports the device until ctx ends, then says that it leaves. The only error
// it returns is a configuration that cannot work.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: cfg.Timeout}).DialContext,
		TLSHandshakeTimeout: cfg.Timeout,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     2 * cfg.Interval,
		// Answers are small; a small one that unpacks to a large one is no gift.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         4 << 10,
		WriteBufferSize:        4 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// A redirect would carry figures, or a key, to somebody unnamed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	a := &agent{
		cfg: cfg, log: log.With("device_id", cfg.ID), state: starting,
		device: device{cfg: cfg, client: client}, server: server{cfg: cfg, client: client},
		pause: backoff.NewExponentialBackOff(
			backoff.WithInitialInterval(cfg.Interval), backoff.WithMaxInterval(cfg.MaxBackoff),
			backoff.WithMultiplier(1.5), backoff.WithRandomizationFactor(0.3), backoff.WithMaxElapsedTime(0)),
	}
	a.run(ctx)
	return nil
}

func (a *agent) run(ctx context.Context) {
	// CPU and disk figures are differences: the first beat waits for a first one.
	a.host.sample(ctx)
	timer := time.NewTimer(min(a.cfg.Interval/10, 500*time.Millisecond))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			a.leave(ctx)
			return
		case <-timer.C:
		}
		begin := time.Now()
		next := a.try(ctx)
		timer.Reset(max(0, next-time.Since(begin)))
	}
}

// try makes one beat and says how long after its beginning the next is due.
func (a *agent) try(ctx context.Context) time.Duration {
	beat, err := a.measure(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.become(deviceAway, err)
		}
		// A device is asked at the same pace as ever: it is near, and its return
		// should be told at once.
		return a.cfg.Interval
	}
	// The end of ctx does not cut this request: a beat that the server still works
	// on could otherwise overtake the leaving that follows, and undo it.
	err = a.server.beat(context.WithoutCancel(ctx), beat)
	var no *refusedError
	switch {
	case err == nil:
		a.joined = true
		a.pause.Reset()
		a.become(beating, nil)
		return a.cfg.Interval
	case errors.As(err, &no):
		a.become(refused, err)
	default:
		a.become(serverAway, err)
	}
	return a.pause.NextBackOff()
}

// measure asks the device and the host. An error means that the device is not
// known to work, and nothing may be sent.
func (a *agent) measure(ctx context.Context) (Heartbeat, error) {
	latency, err := a.device.probe(ctx)
	if err != nil {
		return Heartbeat{}, err
	}
	models, err := a.device.served(ctx)
	if err != nil {
		return Heartbeat{}, err
	}
	told := a.device.load(ctx)
	host := a.host.sample(ctx)
	return Heartbeat{
		URL: a.cfg.Advertise, Models: models, Tags: a.cfg.Tags, Slots: a.cfg.Slots,
		CPU: host.cpu, Mem: host.mem, IO: host.io,
		LatencyMS: float64(latency.Microseconds()) / 1000,
		Queue:     told.waiting, InFlight: told.running,
	}, nil
}

func (a *agent) become(s state, err error) {
	if a.state == s {
		return
	}
	before := a.state
	a.state = s
	switch s {
	case beating:
		a.log.Info("heartbeats reach the server", "server", a.cfg.Server, "before", string(before), "interval", a.cfg.Interval)
	case deviceAway:
		a.log.Warn("the device does not answer; no heartbeats until it does", "url", a.cfg.URL, "error", err)
	case serverAway:
		a.log.Warn("the server does not take heartbeats; trying on", "server", a.cfg.Server, "error", err)
	case refused:
		a.log.Error("the server refuses the heartbeats; trying on, but the agent's settings may have to change", "server", a.cfg.Server, "error", err)
	}
}

// leave tells the server that no beat will follow, if it knows of the device.
func (a *agent) leave(ctx context.Context) {
	if !a.joined {
		return
	}
	if err := a.server.post(context.WithoutCancel(ctx), leaving); err != nil {
		a.log.Warn("the server did not hear that the device leaves; it will miss the heartbeats instead", "error", err)
		return
	}
	a.log.Info("the device has left")
}
