package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v4"
)

// state is the outcome of the last heartbeat; each change is logged once.
type state string

const (
	starting   state = "starting"
	beating    state = "beating"
	deviceAway state = "device away"
	serverAway state = "server away"
	refused    state = "refused"
)

// agent is one run of the agent. It is used by one goroutine.
type agent struct {
	cfg    Config
	log    *slog.Logger
	device device
	server server
	host   host
	state  state
	joined bool // the server accepted a heartbeat, so the device must leave in the end
	pause  *backoff.ExponentialBackOff
}

// Transport returns a transport for the requests of an agent.
func Transport(cfg Config) *http.Transport {
	timeout, interval := cmp.Or(cfg.Timeout, defaultTimeout), cmp.Or(cfg.Interval, defaultInterval)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: timeout}).DialContext,
		TLSHandshakeTimeout: timeout,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     2 * interval,
		// Answers are small; this avoids small answers that decompress to large ones.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         4 << 10,
		WriteBufferSize:        4 << 10,
	}
}

// Run reports the device until ctx ends, then tells the server that it leaves. It only
// returns an error if the configuration cannot work.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg, err := cfg.check()
	if err != nil {
		return err
	}
	transport := Transport(cfg)
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// A redirect could send figures, or a key, to a host that was not configured.
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
	// CPU and disk load are differences between two samples: take the first one before the
	// first heartbeat.
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

// try sends one heartbeat and returns how long after its start the next is due.
func (a *agent) try(ctx context.Context) time.Duration {
	beat, problem := a.measure(ctx)
	if problem != nil {
		if ctx.Err() != nil {
			return a.cfg.Interval
		}
		beat = a.down(ctx, problem)
	}
	// The end of ctx does not cancel this request: the server could otherwise still be
	// processing it after the leaving heartbeat that follows, and undo that.
	err := a.server.beat(context.WithoutCancel(ctx), beat)
	var no *refusedError
	switch {
	case err == nil:
		a.joined = true
		a.pause.Reset()
		if problem != nil {
			a.become(deviceAway, problem)
		} else {
			a.become(beating, nil)
		}
		// A device that is away is asked at the usual pace: it is near, and its recovery should be noticed at once.
		return a.cfg.Interval
	case errors.As(err, &no):
		a.become(refused, err)
	default:
		a.become(serverAway, err)
	}
	return a.pause.NextBackOff()
}

// down returns the heartbeat of a device that does not answer: people see it in the list, with the cause.
func (a *agent) down(ctx context.Context, problem error) Heartbeat {
	a.device.forget()
	host := a.hostLoad(ctx)
	models := a.cfg.Models
	if len(models) == 0 {
		models = a.device.models // of before
	}
	return Heartbeat{
		URL: a.cfg.Advertise, Models: models, Aliases: a.cfg.Aliases, Weight: a.cfg.Weight, Tags: a.cfg.Tags, Slots: a.cfg.Slots,
		CPU: host.cpu, Mem: host.mem, IO: host.io, Problem: a.cause(problem),
	}
}

// hint says what the user can do about an error, where that is known.
func (a *agent) hint(err error) string {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var dns *net.DNSError
	switch {
	case errors.As(err, &authority) && a.cfg.OwnCA:
		return "; ca_file holds no certificate that signed the device's"
	case errors.As(err, &authority):
		return "; if the device has a certificate of its own, set ca_file to it"
	case errors.As(err, &host):
		return "; set server_name to a name in its certificate" + namesIn(host.Certificate)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "; renew the device's certificate, or set the clock of this machine"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return "; write http:// in its url"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "; check the host in its url"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; start the server, or check the port in its url"
	case errors.Is(err, io.EOF) && strings.HasPrefix(a.cfg.URL, "http://"):
		return "; if the server speaks TLS, write https:// in its url"
	}
	return ""
}

// maxNames is how many names of a certificate a message lists.
const maxNames = 5

func namesIn(c *x509.Certificate) string {
	if c == nil || len(c.DNSNames) == 0 {
		return ""
	}
	return ", which are " + strings.Join(c.DNSNames[:min(len(c.DNSNames), maxNames)], ", ")
}

// maxCause and maxHint bound the parts of the problem in a heartbeat, in bytes.
const (
	maxCause = 300
	maxHint  = 400
)

// cause returns an error without the URL that it is about, which the heartbeat has, and what the user can do.
func (a *agent) cause(err error) string {
	text := err.Error()
	var ue *url.Error
	if errors.As(err, &ue) {
		text = ue.Err.Error()
	}
	var authority x509.UnknownAuthorityError
	if errors.As(err, &authority) { // it may guess at length at certificates of this machine
		text = "tls: failed to verify certificate: " + x509.UnknownAuthorityError{}.Error()
	}
	return line(text, maxCause) + line(a.hint(err), maxHint)
}

// line makes one line of a text, of so many bytes at most.
func line(text string, most int) string {
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "")
	for len(text) > most { // at a rune
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return text
}

// hostLoad is the load of the device's machine, as far as it is known.
func (a *agent) hostLoad(ctx context.Context) load {
	if a.cfg.Remote {
		return load{}
	}
	return a.host.sample(ctx)
}

// measure asks the device and the host. After an error the device may not be working.
func (a *agent) measure(ctx context.Context) (Heartbeat, error) {
	latency, err := a.device.probe(ctx)
	if err != nil {
		return Heartbeat{}, err
	}
	models, err := a.device.served(ctx)
	if err != nil {
		return Heartbeat{}, err
	}
	engine := a.device.load(ctx)
	lengths, err := a.device.contexts(ctx)
	if err != nil {
		return Heartbeat{}, err
	}
	if engine.context != nil {
		lengths = engine.context
	}
	host := a.hostLoad(ctx)
	return Heartbeat{
		URL: a.cfg.Advertise, Models: models, Aliases: a.cfg.Aliases, Weight: a.cfg.Weight, Tags: a.cfg.Tags, Slots: a.cfg.Slots,
		CPU: host.cpu, Mem: host.mem, IO: host.io,
		LatencyMS: float64(latency.Microseconds()) / 1000,
		Queue:     engine.waiting, InFlight: engine.running, Loaded: engine.loaded, Context: lengths,
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
		a.log.Warn("the device does not answer; it gets no work until it does", "url", a.cfg.URL, "error", err)
	case serverAway:
		a.log.Warn("the server does not accept heartbeats; retrying", "server", a.cfg.Server, "error", err)
	case refused:
		a.log.Error("the server rejects the heartbeats; retrying, but the agent's settings may be wrong", "server", a.cfg.Server, "error", err)
	}
}

// Causes with which the context of [Run] may end, whatever Config.Stay says.
var (
	ErrLeave = errors.New("the device leaves")
	ErrStay  = errors.New("another agent reports the device from now on")
)

// leave tells the server that no heartbeat will follow, if it has accepted any.
func (a *agent) leave(ctx context.Context) {
	cause := context.Cause(ctx)
	stays := errors.Is(cause, ErrStay) || a.cfg.Stay && !errors.Is(cause, ErrLeave)
	if !a.joined || stays {
		return
	}
	if err := a.server.post(context.WithoutCancel(ctx), leaving); err != nil {
		a.log.Warn("could not tell the server that the device leaves; it will notice the missing heartbeats", "error", err)
		return
	}
	a.log.Info("the device has left")
}
