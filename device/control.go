package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// Control is what operators have said while Batchyard runs: the routers' policy,
// and which devices are drained. It is lost with Redis; then the file's policy
// applies again, and the devices are as their heartbeats say.
type Control struct {
	rdb     redis.UniversalClient
	cfg     Config
	policy  string // hash: version, setting
	drained string // hash: id → since when, in ms
	devices string // the registry's hash
	channel string // the registry's, so that routers look at once
	metrics *metrics.Metrics
}

// NewControl returns what operators have said under the prefix.
func NewControl(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Control {
	return &Control{
		rdb: rdb, cfg: cfg.withDefaults(), metrics: apply(opts).metrics,
		policy: prefix + "{devices}:policy", drained: drainedKey(prefix), devices: prefix + "{devices}", channel: prefix + "{devices}:changed",
	}
}

func drainedKey(prefix string) string { return prefix + "{devices}:drained" }

// Settings is one reading.
type Settings struct {
	Policy  *PolicySetting       // nil: the file's
	Drained map[string]time.Time // devices that an operator drained, and since when; also ones that are not known now
}

// Load reads everything, in one round trip.
func (c *Control) Load(ctx context.Context) (Settings, error) {
	began := time.Now()
	pipe := c.rdb.Pipeline()
	policy, drained := pipe.HGet(ctx, c.policy, "setting"), pipe.HGetAll(ctx, c.drained)
	_, err := pipe.Exec(ctx)
	c.metrics.Device.RedisSeconds.WithLabelValues("control").Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		c.metrics.Device.RedisErrors.WithLabelValues("control").Inc()
		return Settings{}, fmt.Errorf("reading the operators' settings from Redis: %w", err)
	}
	s := Settings{Policy: parsePolicy(policy.Val()), Drained: make(map[string]time.Time, len(drained.Val()))}
	for id, ms := range drained.Val() {
		if ValidateID(id) == nil { // another program may write there too
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

// parsePolicy reads what SetPolicy wrote; nil for nothing, and for what no
// operator could have said.
func parsePolicy(text string) *PolicySetting {
	if text == "" || len(text) > maxEntry || strings.Count(text, ",") > maxEntryValues {
		return nil
	}
	var p PolicySetting
	if json.Unmarshal([]byte(text), &p) != nil || p.Validate() != nil {
		return nil
	}
	return &p
}

// policyScript exchanges the setting and counts the change.
//
//	KEYS[1]  hash with version and setting
//	ARGV[1]  JSON of the setting, beginning with {; empty: none any more
//	ARGV[2]  channel for changes
//	returns  the setting before, or an empty text
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

// SetPolicy makes routers choose by another policy, all within a refresh; nil
// makes them go back to the file's. It returns what applied before, nil for the
// file's. What is wrong with the setting is a *task.FieldError.
func (c *Control) SetPolicy(ctx context.Context, p *PolicySetting) (before *PolicySetting, err error) {
	text := ""
	if p != nil {
		if err := p.Validate(); err != nil {
			return nil, err
		}
		plain := *p
		plain.Version = 0 // the script's to say
		b, err := json.Marshal(plain)
		if err != nil {
			return nil, fmt.Errorf("writing the policy %s: %w", p.Name, err)
		}
		text = string(b)
	}
	v, err := run(ctx, c.rdb, c.metrics, "policy", policyScript, []string{c.policy}, text, c.channel)
	if err != nil {
		return nil, fmt.Errorf("setting the routers' policy in Redis: %w", err)
	}
	old, _ := v.(string)
	return parsePolicy(old), nil
}

// drainScript marks a device as drained, or takes the mark away.
//
//	KEYS[1]  hash of drained devices, id → since when in ms
//	KEYS[2]  hash of devices
//	ARGV[1]  id
//	ARGV[2]  1 to drain, 0 to end it
//	ARGV[3]  most marks
//	ARGV[4]  channel for changes
//	returns  1 changed, 0 it was so already, -1 no such device, -2 too many marks
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

// ErrNoDevice says that no device of that name is known.
var ErrNoDevice = errors.New("there is no such device")

// Drain makes a device get no new work, whatever its heartbeats say, or ends
// that. The mark stays when the device goes, so that it is still drained when it
// comes back. changed is false when it was so already. [ErrNoDevice] says that
// nobody knows the device; what is wrong with the id is a *task.FieldError.
func (c *Control) Drain(ctx context.Context, id string, on bool) (changed bool, err error) {
	if err := ValidateID(id); err != nil {
		return false, err
	}
	arg := 0
	if on {
		arg = 1
	}
	v, err := run(ctx, c.rdb, c.metrics, "drain", drainScript, []string{c.drained, c.devices}, id, arg, c.cfg.MaxDevices, c.channel)
	if err != nil {
		return false, fmt.Errorf("draining device %s in Redis: %w", id, err)
	}
	switch n, _ := v.(int64); n {
	case -1:
		return false, fmt.Errorf("draining device %s: %w", id, ErrNoDevice)
	case -2:
		return false, &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("%d devices are drained already", c.cfg.MaxDevices),
			Remedy: "undrain those that are gone"}
	default:
		return n == 1, nil
	}
}
