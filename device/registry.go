package device

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// Registry is who the devices are, shared by all processes.
type Registry struct {
	rdb     redis.UniversalClient
	cfg     Config
	key     string
	drained string // what operators said: see Control
	channel string
	metrics *metrics.Metrics
}

// NewRegistry returns the registry under the prefix.
func NewRegistry(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Registry {
	return &Registry{
		rdb: rdb, cfg: cfg.withDefaults(), key: prefix + "{devices}", drained: drainedKey(prefix), channel: prefix + "{devices}:changed",
		metrics: apply(opts).metrics,
	}
}

// beatScript writes a heartbeat under Redis' own time.
//
//	KEYS[1]  hash of devices, id → JSON
//	ARGV[1]  id
//	ARGV[2]  JSON of the heartbeat, beginning with {
//	ARGV[3]  sum over its describing part
//	ARGV[4]  most devices that the hash may hold
//	ARGV[5]  milliseconds after which a device is silent
//	ARGV[6]  channel for changes
//	returns  0 known before, 1 joined (new, or silent until now), -1 refused: too many devices
var beatScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local old = redis.call('HGET', KEYS[1], ARGV[1])
local joined, since, same = 1, now, false
if old then
  local at, from, sum = string.match(old, '^{"at":(%d+),"joined_at":(%d+),"sum":"(%x+)"')
  if at and now - tonumber(at) <= tonumber(ARGV[5]) then
    joined, since, same = 0, tonumber(from), sum == ARGV[3]
  end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return -1
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('{"at":%.0f,"joined_at":%.0f,"sum":"%s",', now, since, ARGV[3]) .. string.sub(ARGV[2], 2))
if not same then redis.call('PUBLISH', ARGV[6], ARGV[1]) end
return joined
`)

// leaveScript takes a device out.
//
//	KEYS[1]  hash of devices
//	ARGV[1]  id
//	ARGV[2]  channel for changes
//	returns  1 if it was there
var leaveScript = redis.NewScript(`
local n = redis.call('HDEL', KEYS[1], ARGV[1])
if n > 0 then redis.call('PUBLISH', ARGV[2], ARGV[1]) end
return n
`)

// forgetScript drops entries, unless they have changed since they were read.
//
//	KEYS[1]  hash of devices
//	ARGV     id, value, id, value, …
//	returns  how many were dropped
var forgetScript = redis.NewScript(`
local n = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    n = n + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return n
`)

// Beat records a heartbeat. joined says that the device was not known, or was
// silent until now. What is wrong with the heartbeat is a *task.FieldError;
// any other error is Redis'.
func (r *Registry) Beat(ctx context.Context, d Device) (joined bool, err error) {
	d.Normalize()
	if err := d.Validate(); err != nil {
		r.metrics.Device.Heartbeats.WithLabelValues("refused").Inc()
		return false, err
	}
	p := plainOf(&d)
	body, err := json.Marshal(p)
	if err != nil {
		return false, fmt.Errorf("writing the heartbeat of %s: %w", d.ID, err)
	}
	v, err := run(ctx, r.rdb, r.metrics, "beat", beatScript, []string{r.key},
		d.ID, body, p.sum(), r.cfg.MaxDevices, r.cfg.Timeout.Milliseconds(), r.channel)
	if err != nil {
		r.metrics.Device.Heartbeats.WithLabelValues("error").Inc()
		return false, fmt.Errorf("recording the heartbeat of %s in Redis: %w", d.ID, err)
	}
	switch n, _ := v.(int64); n {
	case -1:
		r.metrics.Device.Heartbeats.WithLabelValues("refused").Inc()
		return false, &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("%d devices are known already", r.cfg.MaxDevices),
			Remedy: "raise devices.max_devices, or let devices that are gone say that they leave"}
	default:
		r.metrics.Device.Heartbeats.WithLabelValues("ok").Inc()
		return n == 1, nil
	}
}

// sum is over what describes the device, not over its figures of the moment.
func (p plain) sum() string {
	models, tags := slices.Sorted(slices.Values(p.Models)), slices.Sorted(slices.Values(p.Tags))
	h := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %t %g", p.URL, models, tags, p.Slots, p.Draining, p.Weight))
	return hex.EncodeToString(h[:8])
}

// Leave takes a device out at once. One that is not known is no error. left
// says that it was there.
func (r *Registry) Leave(ctx context.Context, id string) error {
	_, err := r.Left(ctx, id)
	return err
}

// Left is [Registry.Leave], and says whether the device was there.
func (r *Registry) Left(ctx context.Context, id string) (was bool, err error) {
	if err := ValidateID(id); err != nil {
		return false, err
	}
	v, err := run(ctx, r.rdb, r.metrics, "leave", leaveScript, []string{r.key}, id, r.channel)
	if err != nil {
		return false, fmt.Errorf("taking device %s out of Redis: %w", id, err)
	}
	n, _ := v.(int64)
	return n > 0, nil
}

// List returns the devices, silent ones included, sorted by id. One that an
// operator drained is draining, whatever its heartbeat said. Those silent for
// longer than Forget are dropped on the way.
func (r *Registry) List(ctx context.Context) ([]Device, error) {
	began := time.Now()
	pipe := r.rdb.Pipeline()
	all, drained, clock := pipe.HGetAll(ctx, r.key), pipe.HGetAll(ctx, r.drained), pipe.Time(ctx)
	_, err := pipe.Exec(ctx)
	r.metrics.Device.RedisSeconds.WithLabelValues("list").Observe(time.Since(began).Seconds())
	if err != nil {
		r.metrics.Device.RedisErrors.WithLabelValues("list").Inc()
		return nil, fmt.Errorf("reading devices from Redis: %w", err)
	}
	now := clock.Val()
	out := make([]Device, 0, len(all.Val()))
	fresh := 0
	var forget []any
	for id, value := range all.Val() {
		d, ok := parseEntry(id, value, now, r.cfg.Timeout)
		switch {
		case ok && d.Age <= r.cfg.Forget:
			if since, ok := drained.Val()[id]; ok {
				d.Draining, d.Drained, d.DrainedAt = true, true, drainedAt(since)
			}
			out = append(out, d)
			if !d.silent {
				fresh++
			}
		case len(forget) < 512: // the rest another time
			forget = append(forget, id, value)
		}
	}
	if len(forget) > 0 {
		if _, err := run(ctx, r.rdb, r.metrics, "forget", forgetScript, []string{r.key}, forget...); err != nil {
			return nil, fmt.Errorf("dropping forgotten devices in Redis: %w", err)
		}
	}
	r.metrics.Device.Known.Set(float64(fresh))
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// silentScript notes who said of which silence that there is one.
//
//	KEYS[1]  hash of devices, id → when it was heard last, of the silence told last
//	ARGV[1]  milliseconds after which the hash is forgotten when nobody falls silent
//	ARGV     then id, when it was heard last, for each device
//	returns  for each: 1 when nobody has said so before
var silentScript = redis.NewScript(`
local out = {}
for i = 2, #ARGV, 2 do
  local new = redis.call('HGET', KEYS[1], ARGV[i]) ~= ARGV[i + 1]
  if new then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  out[#out + 1] = new and 1 or 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return out
`)

// MaxSilent bounds what FirstToSay takes.
const MaxSilent = 256

// FirstToSay returns those of the silent devices whose silence nobody has told of
// yet: it is the caller's to do. Of several who look at the same fleet one gets
// each; when that one dies before it has told, nobody does. It takes MaxSilent
// devices at a time.
func (r *Registry) FirstToSay(ctx context.Context, silent []Device) ([]Device, error) {
	if len(silent) == 0 {
		return nil, nil
	}
	args := []any{(2*r.cfg.Forget + time.Hour).Milliseconds()}
	for _, d := range silent {
		args = append(args, d.ID, d.At.UnixMilli())
	}
	v, err := run(ctx, r.rdb, r.metrics, "silent", silentScript, []string{r.key + ":silent"}, args...)
	if err != nil {
		return nil, fmt.Errorf("noting in Redis that %d devices are silent: %w", len(silent), err)
	}
	said, _ := v.([]any)
	var first []Device
	for i, d := range silent {
		if i < len(said) && said[i] == int64(1) {
			first = append(first, d)
		}
	}
	return first, nil
}

// Watch calls onChange whenever a device joined, left or changed in more than
// its figures, and after every reconnect, since messages may have been missed.
// It returns when ctx ends. That a device fell silent is no message: time tells.
func (r *Registry) Watch(ctx context.Context, onChange func()) error {
	return watch(ctx, r.rdb, r.channel, func(string) { onChange() }, onChange)
}
