package learn

import (
	"math"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
)

// EstimatorConfig determines how fast an [Estimator] learns. The zero value is usable.
type EstimatorConfig struct {
	Memory     time.Duration // how long a sample counts while others arrive; 0 means 10 s
	MinSamples float64       // how many samples are kept however old they are; 0 means 16
	MaxStep    float64       // one update changes an estimate by at most this factor, up or down; 0 means 1.25
	MaxModels  int           // how many models are kept; 0 means 1024
}

func (c EstimatorConfig) withDefaults() EstimatorConfig {
	if c.Memory <= 0 {
		c.Memory = 10 * time.Second
	}
	if c.MinSamples <= 0 {
		c.MinSamples = 16
	}
	if c.MaxStep <= 1 {
		c.MaxStep = 1.25
	}
	if c.MaxModels <= 0 {
		c.MaxModels = 1024
	}
	return c
}

// The first samples are averaged: until there are earlySamples, one update may change the
// estimate by a factor of earlyStep. So a first request that had to load the model is soon
// corrected, and yet one outlier does not dominate the mean.
const (
	earlySamples = 8
	earlyStep    = 2
)

// Estimator learns how long one task occupies one slot of a device, by model and by
// whether requests were batched. The inverse is the device's rate: tasks per busy
// slot-second. Idle time counts in neither, so a device that gets little work does not
// look slow.
//
// The estimate is a ratio of two sums, busy time and tasks, in which the weight of a
// sample decays with its age t as e^(−t/Memory):
//
//	service = Σ w·busy / Σ w·tasks
//
// So many samples within a short time are averaged well, and a change of the device's
// speed shows within about Memory, at any rate of samples. If samples are rare, the decay
// stops at MinSamples samples. A request of n tasks weighs n times as much as a request of one.
// An update that would change the estimate by more than a factor of MaxStep changes it by
// MaxStep: one stray request of minutes does not make a device slow, ten in a row do.
//
// Sources: the ratio estimator is from Cochran, Sampling Techniques, chapter 6; the
// decaying sums are exponential decay over irregular intervals as in Cormode, Shkapenyuk,
// Srivastava and Xu, Forward Decay, ICDE 2009.
//
// It has no clock: its caller passes the time, real or simulated. It may be used by many
// goroutines.
type Estimator struct {
	cfg EstimatorConfig

	mu      sync.Mutex
	m       map[device.RateKey]*estimate
	changed map[device.RateKey]struct{}
}

// estimate holds the decaying sums of one model.
type estimate struct {
	busy     float64 // ms
	tasks    float64
	requests float64
	samples  int64 // requests, without decay
	at       time.Time
}

func (s *estimate) mean() float64 { return s.busy / s.tasks }

// NewEstimator returns an estimator without samples.
func NewEstimator(cfg EstimatorConfig) *Estimator {
	return &Estimator{cfg: cfg.withDefaults(), m: map[device.RateKey]*estimate{}, changed: map[device.RateKey]struct{}{}}
}

// Learn records a request of n tasks that occupied a slot for d and ended now.
func (e *Estimator) Learn(k device.RateKey, d time.Duration, n int, now time.Time) {
	if d < 0 || n < 1 {
		return
	}
	ms := float64(d) / float64(time.Millisecond)
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.m[k]
	if s == nil {
		s = e.add(k)
	}
	before := 0.0
	if s.requests > 0 {
		before = s.mean()
		age := max(0, now.Sub(s.at))
		fade := max(math.Exp(-float64(age)/float64(e.cfg.Memory)), min(1, e.cfg.MinSamples/s.requests))
		s.busy, s.tasks, s.requests = s.busy*fade, s.tasks*fade, s.requests*fade
	}
	s.busy, s.tasks, s.requests = s.busy+ms, s.tasks+float64(n), s.requests+1
	s.samples++
	if before > 0 {
		step := e.cfg.MaxStep
		if s.samples <= earlySamples {
			step = max(step, earlyStep)
		}
		s.busy = min(max(s.mean(), before/step), before*step) * s.tasks
	}
	if now.After(s.at) {
		s.at = now
	}
	e.changed[k] = struct{}{}
}

// add adds a model. If there are too many, it drops the one updated least recently.
func (e *Estimator) add(k device.RateKey) *estimate {
	if len(e.m) >= e.cfg.MaxModels {
		var oldest device.RateKey
		var at time.Time
		for k, s := range e.m {
			if at.IsZero() || s.at.Before(at) {
				oldest, at = k, s.at
			}
		}
		delete(e.m, oldest)
		delete(e.changed, oldest)
	}
	s := &estimate{}
	e.m[k] = s
	return s
}

// Seed sets what the device's previous owner has learned. It counts for at most MinSamples
// samples, and is ignored if there are samples already.
func (e *Estimator) Seed(k device.RateKey, r device.Rate) {
	if !(r.ServiceMS > 0) || math.IsInf(r.ServiceMS, 0) || r.Samples < 1 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.m[k] != nil || len(e.m) >= e.cfg.MaxModels {
		return
	}
	n := min(float64(r.Samples), e.cfg.MinSamples)
	e.m[k] = &estimate{busy: r.ServiceMS * n, tasks: n, requests: n, samples: r.Samples, at: r.At}
}

// Service returns how long one task occupies a slot. known is false without samples.
func (e *Estimator) Service(k device.RateKey) (d time.Duration, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.m[k]
	if s == nil {
		return 0, false
	}
	return time.Duration(s.mean() * float64(time.Millisecond)), true
}

// Take adds to into what has changed since the last call.
func (e *Estimator) Take(into map[device.RateKey]device.Rate) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k := range e.changed {
		s := e.m[k]
		into[k] = device.Rate{ServiceMS: s.mean(), Samples: s.samples, At: s.at.UTC()}
	}
	clear(e.changed)
}
