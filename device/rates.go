package device

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RateKey names what a rate is learned for.
type RateKey struct {
	Device string
	Model  string
	Merged bool // tasks of merged requests count one by one
}

// Rate is what a worker has learned of a device with a model.
type Rate struct {
	ServiceMS float64   `json:"service_ms"` // time of one task on one busy slot
	Samples   int64     `json:"samples"`
	At        time.Time `json:"at"`
}

// Health is what the worker that owns a device knows from trying it.
type Health struct {
	State     string    `json:"state"`               // closed, half-open, open: see [Ejector]
	OpenUntil time.Time `json:"open_until,omitzero"` // no request before
	SlowUntil time.Time `json:"slow_until,omitzero"` // it answered 429: no request before
	Slots     int       `json:"slots,omitempty"`     // requests at a time that it takes just now, fewer than it says; 0: as many as it says
	HopMS     float64   `json:"hop_ms,omitempty"`    // from assignment to the start of the request when a slot was free; 0: not known
	Opened    int       `json:"opened,omitempty"`    // ejections in a row
	Why       string    `json:"why,omitempty"`       // it was ejected, in figures
	At        time.Time `json:"at"`
}

// Rates shares what workers learn of devices with the routers, through Redis.
// It may be forgotten at any moment: it is learned again within a few tasks.
type Rates struct {
	rdb           redis.UniversalClient
	rates, health string
}

// rateLife is how long an entry is believed without being confirmed.
const rateLife = time.Hour

// NewRates returns the shared rates under the prefix.
func NewRates(rdb redis.UniversalClient, prefix string) *Rates {
	return &Rates{rdb: rdb, rates: prefix + "rates", health: prefix + "health"}
}

func (k RateKey) field() string {
	kind := "each"
	if k.Merged {
		kind = "merged"
	}
	return k.Device + "\x1f" + k.Model + "\x1f" + kind
}

func parseRateKey(f string) (RateKey, bool) {
	p := strings.Split(f, "\x1f")
	if len(p) != 3 {
		return RateKey{}, false
	}
	return RateKey{p[0], p[1], p[2] == "merged"}, true
}

// Report publishes rates and healths, in one round trip.
func (r *Rates) Report(ctx context.Context, rates map[RateKey]Rate, healths map[string]Health) error {
	if len(rates)+len(healths) == 0 {
		return nil
	}
	pipe := r.rdb.Pipeline()
	for k, v := range rates {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("writing the rate of %s: %w", k.Device, err)
		}
		pipe.HSet(ctx, r.rates, k.field(), b)
	}
	for id, h := range healths {
		b, err := json.Marshal(h)
		if err != nil {
			return fmt.Errorf("writing the health of %s: %w", id, err)
		}
		pipe.HSet(ctx, r.health, id, b)
	}
	pipe.Expire(ctx, r.rates, rateLife)
	pipe.Expire(ctx, r.health, rateLife)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("reporting rates of devices to Redis: %w", err)
	}
	return nil
}

// Load reads everything that is known, and drops what is too old.
func (r *Rates) Load(ctx context.Context) (map[RateKey]Rate, map[string]Health, error) {
	pipe := r.rdb.Pipeline()
	ra, he := pipe.HGetAll(ctx, r.rates), pipe.HGetAll(ctx, r.health)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, nil, fmt.Errorf("reading rates of devices from Redis: %w", err)
	}
	old := time.Now().Add(-rateLife)
	rates := make(map[RateKey]Rate, len(ra.Val()))
	var drop []string
	for f, v := range ra.Val() {
		var rate Rate
		k, ok := parseRateKey(f)
		if !ok || json.Unmarshal([]byte(v), &rate) != nil || rate.At.Before(old) {
			drop = append(drop, f)
			continue
		}
		rates[k] = rate
	}
	healths := make(map[string]Health, len(he.Val()))
	for id, v := range he.Val() {
		var h Health
		if json.Unmarshal([]byte(v), &h) == nil && h.At.After(old) {
			healths[id] = h
		}
	}
	if len(drop) > 0 {
		if err := r.rdb.HDel(ctx, r.rates, drop...).Err(); err != nil {
			return nil, nil, fmt.Errorf("dropping old rates in Redis: %w", err)
		}
	}
	return rates, healths, nil
}
