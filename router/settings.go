package router

import (
	"fmt"
	"strconv"

	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/router/policy"
)

// decider is the settings of the decisions. The error says which of them is wrong.
func (c *Config) decider() (decide.Config, error) {
	weights, err := tenantWeights(c.Tenants)
	if err != nil {
		return decide.Config{}, err
	}
	return decide.Config{
		Binding:             decide.Binding(c.Binding),
		MaxPendingTasks:     c.MaxPendingTasks,
		MaxPendingBytes:     c.MaxPendingBytes,
		MaxAsideBytes:       c.MaxAsideBytes,
		MaxRoundTasks:       c.MaxRoundTasks,
		MaxPrefetch:         c.MaxPrefetch,
		MaxDeviceQueue:      c.MaxDeviceQueue,
		BatchCreditsPerSlot: c.BatchCreditsPerSlot,
		DispatchLatency:     c.DispatchLatency,
		SlowStart:           c.SlowStart,
		ProbeInterval:       c.ProbeInterval,
		ShareNormal:         c.ShareNormal,
		ShareLow:            c.ShareLow,
		LevelBoost:          c.LevelBoost,
		TenantWeights:       weights,
		RefreshInterval:     c.RefreshInterval,
	}, nil
}

// newPolicy makes the configured policy.
func (c *Config) newPolicy() (policy.Policy, error) {
	return policy.New(c.Policy, policy.Config{HashBy: c.HashBy, Weights: c.Weights})
}

// NewDecider returns a decider and its policy as configured, for the router itself and for
// simulations of it. The seed makes its random choices.
func NewDecider(cfg Config, seed uint64, effects decide.Effects) (*decide.Decider, error) {
	p, err := cfg.newPolicy()
	if err != nil {
		return nil, err
	}
	dc, err := cfg.decider()
	if err != nil {
		return nil, err
	}
	return decide.New(dc, p, seed, effects), nil
}

// maxTenantWeight bounds a weight: beyond it, only the ratio of weights would lose precision.
const maxTenantWeight = 1e6

// tenantWeights reads the weights of tenants.
func tenantWeights(texts map[string]string) (map[string]float64, error) {
	weights := make(map[string]float64, len(texts))
	for tenant, text := range texts {
		w, err := strconv.ParseFloat(text, 64)
		if err != nil || !(w > 0) || w > maxTenantWeight {
			return nil, fmt.Errorf("router.tenant_weights: invalid weight %q of tenant %q: use a number above 0 and up to 1000000, such as 2 or 0.5", text, tenant)
		}
		weights[tenant] = w
	}
	return weights, nil
}
