package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Control is what operators set at run time: the routers' policy, which overrides the
// configuration file, and which devices are drained. Routers learn of a change through the
// registry's channel. It is lost with Redis; then the file's policy applies again and
// devices are as their heartbeats say.
//
//	          Drain(on)                        Drain(off)
//	(as its ───────────▶ drained, known or not ──────────▶ (as its heartbeats say)
//	 heartbeats say)
type Control struct {
	conn
	cfg     Config
	policy  string // hash: version, setting
	drained string // hash: id → since when, in ms
	devices string // the registry's hash
	channel string // the registry's, so that routers react at once
}

// NewControl returns the controls whose keys start with the prefix.
func NewControl(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Control {
	return &Control{
		cfg: cfg.withDefaults(), conn: open(rdb, opts),
		policy: prefix + "{devices}:policy", drained: drainedKey(prefix), devices: prefix + "{devices}", channel: prefix + "{devices}:changed",
	}
}

func drainedKey(prefix string) string { return prefix + "{devices}:drained" }

// Load reads the settings in one round trip.
func (c *Control) Load(ctx context.Context) (device.Settings, error) {
	began := time.Now()
	pipe := c.rdb.Pipeline()
	policy, drained := pipe.HGet(ctx, c.policy, "setting"), pipe.HGetAll(ctx, c.drained)
	_, err := pipe.Exec(ctx)
	c.metrics.Device.RedisSeconds.WithLabelValues("control").Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		c.metrics.Device.RedisErrors.WithLabelValues("control").Inc()
		return device.Settings{}, fmt.Errorf("reading the operators' settings from Redis: %w", err)
	}
	s := device.Settings{Policy: parsePolicy(policy.Val()), Drained: make(map[string]time.Time, len(drained.Val()))}
	for id, ms := range drained.Val() {
		if device.ValidateID(id) == nil { // another program may have written it
			s.Drained[id] = drainedAt(ms)
		}
	}
	return s, nil
}

func drainedAt(ms string) time.Time {
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// parsePolicy parses what SetPolicy wrote; nil if there is nothing, or nothing valid.
func parsePolicy(text string) *device.PolicySetting {
	if text == "" || len(text) > maxEntry || strings.Count(text, ",") > maxEntryValues {
		return nil
	}
	var p device.PolicySetting
	if json.Unmarshal([]byte(text), &p) != nil || p.Validate() != nil {
		return nil
	}
	return &p
}

// policyScript replaces the setting and counts the change.
//
//	KEYS[1]  hash with version and setting
//	ARGV[1]  JSON of the setting, starting with {; empty to remove it
//	ARGV[2]  channel for changes
//	returns  the previous setting, or an empty string
var policyScript = redis.NewScript(`
local old = redis.call('HGET', KEYS[1], 'setting') or ''
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
if ARGV[1] == '' then
  redis.call('HDEL', KEYS[1], 'setting')
else
  redis.call('HSET', KEYS[1], 'setting', string.format('{"version":%d,', version) .. string.sub(ARGV[1], 2))
end
redis.call('PUBLISH', ARGV[2], '')
return old
`)

// SetPolicy changes the policy of all routers, within a refresh interval; nil restores the
// configuration file's. It returns the previous setting, nil for the file's. An invalid
// setting is a *task.FieldError.
func (c *Control) SetPolicy(ctx context.Context, p *device.PolicySetting) (before *device.PolicySetting, err error) {
	text := ""
	if p != nil {
		if err := p.Validate(); err != nil {
			return nil, err
		}
		plain := *p
		plain.Version = 0 // the script sets it
		b, err := json.Marshal(plain)
		if err != nil {
			return nil, fmt.Errorf("encoding the policy %s: %w", p.Name, err)
		}
		text = string(b)
	}
	v, err := c.run(ctx, "policy", policyScript, []string{c.policy}, text, c.channel)
	if err != nil {
		return nil, fmt.Errorf("setting the routers' policy in Redis: %w", err)
	}
	old, _ := v.(string)
	return parsePolicy(old), nil
}

// drainScript marks a device as drained, or removes the mark.
//
//	KEYS[1]  hash of drained devices, id → since when in ms
//	KEYS[2]  hash of devices
//	ARGV[1]  id
//	ARGV[2]  1 to drain, 0 to undrain
//	ARGV[3]  how many devices may be marked
//	ARGV[4]  channel for changes
//	returns  1 changed, 0 no change, -1 no such device, -2 too many marks
var drainScript = redis.NewScript(`
local marked = redis.call('HEXISTS', KEYS[1], ARGV[1])
if marked == 0 and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return -1 end
if marked == tonumber(ARGV[2]) then return 0 end
if ARGV[2] == '1' then
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return -2 end
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 1
`)

// ErrNoDevice means that there is no device with this id.
var ErrNoDevice = errors.New("there is no such device")

// Drain stops new work for a device, whatever its heartbeats say. The mark stays when the
// device leaves, so that it is still drained when it comes back. changed is false if there
// was nothing to change. An unknown device is [ErrNoDevice]; an invalid id is a
// *task.FieldError.
func (c *Control) Drain(ctx context.Context, id string) (changed bool, err error) {
	return c.setDrained(ctx, id, 1)
}

// Undrain allows new work for a device again; otherwise it is like [Control.Drain].
func (c *Control) Undrain(ctx context.Context, id string) (changed bool, err error) {
	return c.setDrained(ctx, id, 0)
}

func (c *Control) setDrained(ctx context.Context, id string, arg int) (changed bool, err error) {
	if err := device.ValidateID(id); err != nil {
		return false, err
	}
	v, err := c.run(ctx, "drain", drainScript, []string{c.drained, c.devices}, id, arg, c.cfg.MaxDevices, c.channel)
	if err != nil {
		return false, fmt.Errorf("draining device %s in Redis: %w", id, err)
	}
	switch n, _ := v.(int64); n {
	case -1:
		return false, fmt.Errorf("draining device %s: %w", id, ErrNoDevice)
	case -2:
		return false, &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("there are already %d drained devices", c.cfg.MaxDevices),
			Remedy: "undrain devices that are gone"}
	default:
		return n == 1, nil
	}
}
