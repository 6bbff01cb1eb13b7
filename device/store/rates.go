package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/text"
)

// Rates shares what workers learn about devices with the routers, through Redis. It may be
// lost at any moment: a few tasks are enough to learn it again.
//
// Times are written as durations from now beside the time of Redis' clock, and read
// against the same clock, because the clocks of workers and routers may differ.
type Rates struct {
	conn
	rates, health string
}

// rateTTL is how long an entry stays valid without being reported again.
const rateTTL = time.Hour

// NewRates returns the shared rates whose keys start with the prefix.
func NewRates(rdb redis.UniversalClient, prefix string, opts ...Option) *Rates {
	return &Rates{rates: prefix + "rates", health: prefix + "health", conn: open(rdb, opts)}
}

// rateField is the key as a field of the hash; parseRateKey is its inverse.
func rateField(k device.RateKey) string {
	kind := device.ClassSingle
	if k.Batched {
		kind = device.ClassBatched
	}
	return k.DeviceID + "\x1f" + k.Model + "\x1f" + kind
}

func parseRateKey(f string) (device.RateKey, bool) {
	p := strings.SplitN(f, "\x1f", 4)
	if len(p) != 3 {
		return device.RateKey{}, false
	}
	return device.RateKey{DeviceID: p[0], Model: p[1], Batched: p[2] == device.ClassBatched}, true
}

// rateEntry is a rate as stored in Redis; the script writes "at" first.
type rateEntry struct {
	At        int64   `json:"at,omitempty"` // ms, Redis' clock: when it was written
	ServiceMS float64 `json:"service_ms"`
	Samples   int64   `json:"samples"`
	AgeMS     int64   `json:"age_ms,omitempty"` // of the last sample, at that time
}

// healthEntry is a health as stored in Redis; the script writes "at" first.
type healthEntry struct {
	At     int64   `json:"at,omitempty"` // ms, Redis' clock: when it was written
	State  string  `json:"state"`
	OpenMS int64   `json:"open_ms,omitempty"` // open for so long from then on
	SlowMS int64   `json:"slow_ms,omitempty"`
	Slots  int     `json:"slots,omitempty"`
	HopMS  float64 `json:"dispatch_ms,omitempty"`
	Opened int     `json:"opened,omitempty"`
	Why    string  `json:"why,omitempty"`

	SinceMS int64          `json:"since_ms,omitempty"` // it was so for so long then
	Failing string         `json:"failing,omitempty"`
	Figures device.Figures `json:"figures,omitzero"`

	Declines []declineEntry `json:"declines,omitempty"`
	MaxBatch map[string]int `json:"max_batch,omitempty"`
	Context  map[string]int `json:"context,omitempty"`
}

// declineEntry is a [device.Decline] that ends so long after the entry was written.
type declineEntry struct {
	Endpoint string `json:"endpoint"`
	Model    string `json:"model"`
	Status   int    `json:"status,omitempty"`
	Why      string `json:"why,omitempty"`
	MinSize  int    `json:"min_size,omitempty"`
	LeftMS   int64  `json:"left_ms"`
}

// entryOf returns a health as it is stored at a time.
func entryOf(h *device.Health, now time.Time) healthEntry {
	e := healthEntry{
		State: h.State, OpenMS: left(h.OpenUntil, now), SlowMS: left(h.ThrottledUntil, now),
		Slots: h.Slots, HopMS: h.DispatchMS, Opened: h.Opened, Why: h.Why, MaxBatch: h.MaxBatch, Context: h.Context,
	}
	e.Failing, e.Figures = text.Clip(h.Failing, device.MaxFailing), h.Figures
	if !h.Since.IsZero() {
		e.SinceMS = max(1, now.Sub(h.Since).Milliseconds())
	}
	for _, d := range h.Declines {
		e.Declines = append(e.Declines, declineEntry{d.Endpoint, d.Model, d.Status, d.Why, d.MinSize, left(d.Until, now)})
	}
	return e
}

// maxSinceMS bounds a time that another program may have written.
const maxSinceMS = 366 * 24 * 3600 * 1000

// health returns the health that was stored at a time. Another program may have written it, so its
// lists are bounded.
func (e *healthEntry) health(at time.Time) device.Health {
	h := device.Health{State: e.State, OpenUntil: until(at, e.OpenMS), ThrottledUntil: until(at, e.SlowMS),
		Slots: max(0, e.Slots), DispatchMS: max(0, e.HopMS), Opened: max(0, e.Opened), Why: e.Why, At: at.UTC()}
	h.Failing, h.Figures = text.Clip(e.Failing, device.MaxFailing), e.Figures
	if e.SinceMS > 0 {
		h.Since = at.Add(-time.Duration(min(e.SinceMS, maxSinceMS)) * time.Millisecond).UTC()
	}
	for _, d := range e.Declines[:min(len(e.Declines), device.MaxDeclines)] {
		h.Declines = append(h.Declines, device.Decline{Endpoint: d.Endpoint, Model: d.Model, Status: d.Status, Why: d.Why, MinSize: max(0, d.MinSize), Until: until(at, d.LeftMS)})
	}
	if len(e.MaxBatch) <= device.MaxBatches {
		h.MaxBatch = e.MaxBatch
	}
	if len(e.Context) <= device.MaxBatches {
		h.Context = e.Context
	}
	return h
}

// reportScript writes entries with Redis' time.
//
//	KEYS[1]  hash of rates or of healths
//	ARGV[1]  milliseconds after which the hash expires if nothing is reported
//	ARGV     then, for each entry: field, JSON starting with {
var reportScript = redis.NewScript(`
local t = redis.call('TIME')
local now = string.format('{"at":%.0f,', t[1] * 1000 + math.floor(t[2] / 1000))
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now .. string.sub(ARGV[i + 1], 2)) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return #ARGV
`)

// Report publishes rates by key and healths by device id. Their times are of time.Now.
func (r *Rates) Report(ctx context.Context, rates map[device.RateKey]device.Rate, healths map[string]device.Health) error {
	now := time.Now()
	entries := make([]any, 0, 2*max(len(rates), len(healths)))
	for k, v := range rates {
		b, err := json.Marshal(rateEntry{ServiceMS: v.ServiceMS, Samples: v.Samples, AgeMS: max(0, now.Sub(v.At).Milliseconds())})
		if err != nil {
			return fmt.Errorf("encoding the rate of %s: %w", k.DeviceID, err)
		}
		entries = append(entries, rateField(k), b)
	}
	if err := r.write(ctx, r.rates, entries); err != nil {
		return err
	}
	entries = entries[:0]
	for id, h := range healths {
		b, err := json.Marshal(entryOf(&h, now))
		if err != nil {
			return fmt.Errorf("encoding the health of %s: %w", id, err)
		}
		entries = append(entries, id, b)
	}
	return r.write(ctx, r.health, entries)
}

// left is the milliseconds until then, rounded up: it is 0 only once the time has passed.
func left(until, now time.Time) int64 {
	if until.IsZero() {
		return 0
	}
	return max(0, int64(math.Ceil(float64(until.Sub(now))/float64(time.Millisecond))))
}

func (r *Rates) write(ctx context.Context, key string, entries []any) error {
	for len(entries) > 0 {
		part := entries[:min(len(entries), 2*maxCall)]
		entries = entries[len(part):]
		args := append([]any{rateTTL.Milliseconds()}, part...)
		if _, err := r.run(ctx, "report", reportScript, []string{key}, args...); err != nil {
			return fmt.Errorf("reporting %d rates or healths of devices to Redis: %w", len(part)/2, err)
		}
	}
	return nil
}

// Load reads all rates and healths and deletes those that are too old. Their times are of
// clock.Now.
func (r *Rates) Load(ctx context.Context) (map[device.RateKey]device.Rate, map[string]device.Health, error) {
	began := time.Now()
	pipe := r.rdb.Pipeline()
	ra, he, redisTime := pipe.HGetAll(ctx, r.rates), pipe.HGetAll(ctx, r.health), pipe.Time(ctx)
	_, err := pipe.Exec(ctx)
	r.metrics.Device.RedisSeconds.WithLabelValues("rates").Observe(time.Since(began).Seconds())
	if err != nil {
		r.metrics.Device.RedisErrors.WithLabelValues("rates").Inc()
		return nil, nil, fmt.Errorf("reading rates of devices from Redis: %w", err)
	}
	now := clock.Now()
	written := func(at int64) time.Time { return now.Add(time.UnixMilli(at).Sub(redisTime.Val())) }
	old := now.Add(-rateTTL)
	rates := make(map[device.RateKey]device.Rate, len(ra.Val()))
	var drop, dropHealth []string
	for f, v := range ra.Val() {
		var e rateEntry
		k, ok := parseRateKey(f)
		if !ok || json.Unmarshal([]byte(v), &e) != nil || written(e.At).Before(old) || e.ServiceMS < 0 {
			drop = append(drop, f)
			continue
		}
		age := time.Duration(min(max(0, e.AgeMS), rateTTL.Milliseconds())) * time.Millisecond
		rates[k] = device.Rate{ServiceMS: e.ServiceMS, Samples: e.Samples, At: written(e.At).Add(-age).UTC()}
	}
	healths := make(map[string]device.Health, len(he.Val()))
	for id, v := range he.Val() {
		var e healthEntry
		if json.Unmarshal([]byte(v), &e) != nil || written(e.At).Before(old) {
			dropHealth = append(dropHealth, id)
			continue
		}
		healths[id] = e.health(written(e.At))
	}
	return rates, healths, errors.Join(r.drop(ctx, r.rates, drop), r.drop(ctx, r.health, dropHealth))
}

// Health reads the health of one device; the zero value if nothing is known of it. Its times are of
// time.Now.
func (r *Rates) Health(ctx context.Context, id string) (device.Health, error) {
	pipe := r.rdb.Pipeline()
	v, redisTime := pipe.HGet(ctx, r.health, id), pipe.Time(ctx)
	_, err := pipe.Exec(ctx)
	if errors.Is(err, redis.Nil) {
		return device.Health{}, nil
	}
	if err != nil {
		return device.Health{}, fmt.Errorf("reading the health of device %s from Redis: %w", id, err)
	}
	var e healthEntry
	if err := json.Unmarshal([]byte(v.Val()), &e); err != nil {
		return device.Health{}, nil //nolint:nilerr // Load deletes it
	}
	age := redisTime.Val().Sub(time.UnixMilli(e.At))
	if age > rateTTL {
		return device.Health{}, nil
	}
	return e.health(time.Now().Add(-age)), nil
}

// until is the time ms milliseconds after at, capped because another program may have
// written them.
func until(at time.Time, ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return at.Add(time.Duration(min(ms, (24*time.Hour).Milliseconds())) * time.Millisecond).UTC()
}

func (r *Rates) drop(ctx context.Context, key string, fields []string) error {
	if len(fields) == 0 {
		return nil
	}
	if err := r.rdb.HDel(ctx, key, fields[:min(len(fields), maxCall)]...).Err(); err != nil { // the rest next time
		return fmt.Errorf("deleting old rates from Redis: %w", err)
	}
	return nil
}
