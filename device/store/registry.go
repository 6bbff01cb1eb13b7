package store

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

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Limits of a value read from Redis, which another program may have written.
const (
	maxEntry       = 128 << 10 // bytes
	maxEntryValues = 8192      // commas: an empty string is two bytes in JSON and many in memory
)

// Registry is the list of devices, shared by all processes through one Redis hash with a
// field for each device. Values are JSON, so that people can inspect them with redis-cli
// and other programs can write them. Times come from Redis' clock, so the clocks of the
// processes do not matter.
//
//	       first heartbeat            no heartbeat for Timeout
//	(none) ─────────────▶ fresh ──────────────────────────────▶ silent
//	  ▲                    │  ▲         next heartbeat            │  │
//	  │     leaves         │  └───────────────────────────────────┘  │ no heartbeat for Forget
//	  └────────────────────┴─────────────────────────────────────────┘
type Registry struct {
	conn
	cfg     Config
	key     string
	drained string // hash of drained devices: see Control
	channel string
}

// NewRegistry returns the registry whose keys start with the prefix.
func NewRegistry(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Registry {
	return &Registry{
		cfg: cfg.withDefaults(), key: prefix + "{devices}", drained: drainedKey(prefix), channel: prefix + "{devices}:changed",
		conn: open(rdb, opts),
	}
}

// beatScript stores a heartbeat with Redis' time.
//
//	KEYS[1]  hash of devices, id → JSON
//	ARGV[1]  id
//	ARGV[2]  JSON of the heartbeat, starting with {
//	ARGV[3]  checksum of its descriptive part
//	ARGV[4]  how many devices the hash may hold
//	ARGV[5]  milliseconds after which a device is silent
//	ARGV[6]  channel for changes
//	returns  {0 already known, 1 joined (new, or silent until now), -1 refused: too many devices;
//	         the JSON that was there, if it described the device differently}
var beatScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local old = redis.call('HGET', KEYS[1], ARGV[1])
local joined, since, changed, same, before = 1, now, now, false, ''
if old then
  local at, from, sum = string.match(old, '^{"at":(%d+),"joined_at":(%d+),"sum":"(%x+)"')
  if at and now - tonumber(at) <= tonumber(ARGV[5]) then
    joined, since, same = 0, tonumber(from), sum == ARGV[3]
    if same then changed = tonumber(string.match(old, '^[^,]*,[^,]*,[^,]*,"changed_at":(%d+)') or from) end
  end
  if sum ~= ARGV[3] then before = old end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return {-1, ''}
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('{"at":%.0f,"joined_at":%.0f,"sum":"%s","changed_at":%.0f,', now, since, ARGV[3], changed) .. string.sub(ARGV[2], 2))
if not same then redis.call('PUBLISH', ARGV[6], ARGV[1]) end
return {joined, before}
`)

// leaveScript removes a device.
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

// forgetScript deletes entries unless they have changed since they were read.
//
//	KEYS[1]  hash of devices
//	ARGV     id, value, id, value, …
//	returns  how many were deleted
var forgetScript = redis.NewScript(`
local n = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    n = n + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return n
`)

// Beaten is what a heartbeat has changed.
type Beaten struct {
	Joined bool           // the device was unknown or silent until now
	Before *device.Device // what it said of itself before, if it says something else now; its figures are of then
}

// Beat records a heartbeat.
// An invalid heartbeat is a *task.FieldError; any other error comes from Redis.
func (r *Registry) Beat(ctx context.Context, d device.Device) (Beaten, error) {
	d.Normalize()
	if err := d.Validate(); err != nil {
		r.metrics.Device.Heartbeats.WithLabelValues("refused").Inc()
		return Beaten{}, err
	}
	p := heartbeatOf(&d)
	body, err := json.Marshal(p)
	if err != nil {
		return Beaten{}, fmt.Errorf("encoding the heartbeat of %s: %w", d.ID, err)
	}
	v, err := r.run(ctx, "beat", beatScript, []string{r.key},
		d.ID, body, p.sum(), r.cfg.MaxDevices, r.cfg.Timeout.Milliseconds(), r.channel)
	if err != nil {
		r.metrics.Device.Heartbeats.WithLabelValues("error").Inc()
		return Beaten{}, fmt.Errorf("recording the heartbeat of %s in Redis: %w", d.ID, err)
	}
	said, _ := v.([]any)
	if len(said) != 2 {
		return Beaten{}, fmt.Errorf("recording the heartbeat of %s in Redis: unexpected answer %v", d.ID, v)
	}
	n, _ := said[0].(int64)
	if n == -1 {
		r.metrics.Device.Heartbeats.WithLabelValues("refused").Inc()
		return Beaten{}, &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("there are already %d devices", r.cfg.MaxDevices),
			Remedy: "raise devices.max_devices, or have devices that are gone leave"}
	}
	r.metrics.Device.Heartbeats.WithLabelValues("ok").Inc()
	out := Beaten{Joined: n == 1}
	if old, _ := said[1].(string); old != "" {
		if before, ok := parseEntry(d.ID, old, time.Now(), r.cfg.Timeout); ok {
			out.Before = &before
		}
	}
	return out, nil
}

// sum is a checksum of what describes the device, without its momentary figures.
func (p heartbeat) sum() string {
	models, tags := slices.Sorted(slices.Values(p.Models)), slices.Sorted(slices.Values(p.Tags))
	h := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %t %g %q %t", p.URL, models, tags, p.Slots, p.Draining, p.Weight, p.Aliases, p.Problem != ""))
	return hex.EncodeToString(h[:8])
}

// Leave removes a device at once. Removing an unknown device is not an error.
func (r *Registry) Leave(ctx context.Context, id string) error {
	_, err := r.Left(ctx, id)
	return err
}

// Left is [Registry.Leave] and reports whether the device was there.
func (r *Registry) Left(ctx context.Context, id string) (was bool, err error) {
	if err := device.ValidateID(id); err != nil {
		return false, err
	}
	v, err := r.run(ctx, "leave", leaveScript, []string{r.key}, id, r.channel)
	if err != nil {
		return false, fmt.Errorf("removing device %s from Redis: %w", id, err)
	}
	n, _ := v.(int64)
	return n > 0, nil
}

// List returns all devices sorted by id, including silent ones. A device that an operator
// drained is draining, whatever its heartbeat said. Devices that have been silent for
// longer than Forget are removed along the way.
func (r *Registry) List(ctx context.Context) ([]device.Device, error) {
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
	out := make([]device.Device, 0, len(all.Val()))
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
			if !d.Silent {
				fresh++
			}
		case len(forget) < 512: // the rest next time
			forget = append(forget, id, value)
		}
	}
	if len(forget) > 0 {
		if _, err := r.run(ctx, "forget", forgetScript, []string{r.key}, forget...); err != nil {
			return nil, fmt.Errorf("removing long-silent devices from Redis: %w", err)
		}
	}
	r.metrics.Device.Known.Set(float64(fresh))
	slices.SortFunc(out, func(a, b device.Device) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// silentScript records which silences have been reported.
//
//	KEYS[1]  hash of devices, id → time of the last heartbeat before the silence last reported
//	ARGV[1]  milliseconds after which the hash expires if no device falls silent
//	ARGV     then, for each device: id, time of its last heartbeat
//	returns  for each device: 1 if its silence had not been reported
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

// MaxSilences is how many devices [Registry.ClaimSilences] accepts at a time.
const MaxSilences = 256

// ClaimSilences returns the silent devices whose silence has not been reported yet; the
// caller must report it. When several processes watch the same fleet, each silence goes to
// one of them. If that process dies before it reports, the silence goes unreported. It
// accepts at most MaxSilences devices.
func (r *Registry) ClaimSilences(ctx context.Context, silent []device.Device) ([]device.Device, error) {
	if len(silent) == 0 {
		return nil, nil
	}
	args := []any{(2*r.cfg.Forget + time.Hour).Milliseconds()}
	for _, d := range silent {
		args = append(args, d.ID, d.At.UnixMilli())
	}
	v, err := r.run(ctx, "silent", silentScript, []string{r.key + ":silent"}, args...)
	if err != nil {
		return nil, fmt.Errorf("recording in Redis that %d devices are silent: %w", len(silent), err)
	}
	said, _ := v.([]any)
	var first []device.Device
	for i, d := range silent {
		if i < len(said) && said[i] == int64(1) {
			first = append(first, d)
		}
	}
	return first, nil
}

// Watch calls onChange when a device joins, leaves or changes in more than its figures,
// and after every reconnect, because messages may have been missed. It returns when ctx
// ends. Falling silent sends no message: compare Age with the time.
func (r *Registry) Watch(ctx context.Context, onChange func()) error {
	return r.watch(ctx, r.channel, func(string) { onChange() }, onChange)
}
