package fleet

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// The distributions of the service time around its mean.
const (
	Fixed       = "fixed"
	Exponential = "exponential"
	Lognormal   = "lognormal"
)

// Defaults of Spec fields that are zero.
const (
	DefaultQueue      = 1024
	DefaultSeenKeys   = 1 << 16
	DefaultMaxBody    = 8 << 20
	DefaultDimensions = 8
	DefaultCV         = 2.0
)

// AnyModel in Spec.Models makes a device serve every model.
const AnyModel = "*"

// Spec describes a simulated device. Every field except ID may be zero, which means
// one slot, any model, immediate answers.
type Spec struct {
	ID     string   // device id
	Models []string // models it serves; empty means AnyModel
	Tags   []string // capability tags, for the code that registers the device
	Slots  int      // requests that run at the same time; 0 means 1
	Port   int      // on loopback; 0 means any that is free

	// The mean time of a request in its slot is a sum: ServiceTime (for embeddings
	// and moderations, EmbedTime if it is not zero), plus the time for each token,
	// plus BatchItemTime for each item of a batched request after the first. If the
	// sum is zero, the answer is immediate.
	ServiceTime    time.Duration
	EmbedTime      time.Duration
	PerPromptToken time.Duration
	PerOutputToken time.Duration
	BatchItemTime  time.Duration

	Distribution string  // of the service time: Fixed (or ""), Exponential or Lognormal
	CV           float64 // coefficient of variation for Lognormal; 0 means DefaultCV
	Seed         uint64  // determines, with n, the service time of the n-th request

	Queue      int    // requests that may wait for a slot; 0 means DefaultQueue, negative none
	SeenKeys   int    // task keys remembered for Seen; 0 means DefaultSeenKeys, negative none
	MaxBody    int64  // maximum bytes of a request body; 0 means DefaultMaxBody
	Dimensions int    // of an embedding, if the request doesn't say; 0 means DefaultDimensions
	Engine     string // one of [Engines] that it imitates; empty: what all have in common, and vLLM's metrics
	APIKey     string // if set, requests need "Authorization: Bearer <key>"
	MaxItems   int    // most items of a request, beyond which it answers 413 like TEI; 0 means any number
	MaxHeaders int    // most header lines, beyond which it answers 431 like hyper; 0 means any number
	Context    int    // most tokens of an item, beyond which it answers 400 like llama.cpp; 0 means any number
}

// withDefaults validates the spec and fills in the defaults.
func (s Spec) withDefaults() (Spec, error) {
	if s.ID == "" {
		return s, fmt.Errorf("simulated device: missing id")
	}
	for name, d := range map[string]time.Duration{
		"ServiceTime": s.ServiceTime, "EmbedTime": s.EmbedTime, "PerPromptToken": s.PerPromptToken,
		"PerOutputToken": s.PerOutputToken, "BatchItemTime": s.BatchItemTime,
	} {
		if d < 0 {
			return s, fmt.Errorf("simulated device %s: %s is negative (%s)", s.ID, name, d)
		}
	}
	if s.Slots < 0 || s.CV < 0 || s.Dimensions < 0 || s.Dimensions > maxDimensions {
		return s, fmt.Errorf("simulated device %s: slots, CV and dimensions must not be negative, dimensions at most %d", s.ID, maxDimensions)
	}
	if !slices.Contains([]string{"", Fixed, Exponential, Lognormal}, s.Distribution) {
		return s, fmt.Errorf("simulated device %s: unknown distribution %q: use %s, %s or %s", s.ID, s.Distribution, Fixed, Exponential, Lognormal)
	}
	if s.Engine != "" && !slices.Contains(Engines(), s.Engine) {
		return s, fmt.Errorf("simulated device %s: unknown engine %q: use one of %v", s.ID, s.Engine, Engines())
	}
	s.Models = slices.Clone(s.Models)
	if len(s.Models) == 0 {
		s.Models = []string{AnyModel}
	}
	s.Slots = orDefault(s.Slots, 1)
	s.CV = orDefault(s.CV, DefaultCV)
	s.Queue = max(orDefault(s.Queue, DefaultQueue), 0)
	s.SeenKeys = max(orDefault(s.SeenKeys, DefaultSeenKeys), 0)
	s.MaxBody = orDefault(s.MaxBody, DefaultMaxBody)
	s.Dimensions = orDefault(s.Dimensions, DefaultDimensions)
	return s, nil
}

func orDefault[T int | int64 | float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// maxFactor caps a single draw, so that an unlucky one cannot block a test for
// minutes.
const maxFactor = 50

// factor is the multiplier of the n-th request's mean service time. Its mean is 1
// (apart from the cap), and it depends only on the seed and n.
func (s *Spec) factor(n uint64) float64 {
	if s.Distribution == "" || s.Distribution == Fixed {
		return 1
	}
	u1 := unit(mix(s.Seed ^ mix(2*n)))
	if s.Distribution == Exponential {
		return min(-math.Log(u1), maxFactor)
	}
	u2 := unit(mix(s.Seed ^ mix(2*n+1)))
	normal := math.Sqrt(-2*math.Log(u1)) * math.Cos(2*math.Pi*u2)
	variance := math.Log(1 + s.CV*s.CV)
	return min(math.Exp(normal*math.Sqrt(variance)-variance/2), maxFactor)
}

// mix is the finalizer of splitmix64: a cheap bijection whose outputs look random.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// unit maps 64 random bits to (0, 1].
func unit(x uint64) float64 { return (float64(x>>11) + 1) / (1 << 53) }

// Default is the fleet that `batchyard run` uses if no devices are configured: six
// devices that serve any model, fast enough to finish a demo job in seconds and
// different enough for routing to matter.
func Default() []Spec {
	return []Spec{
		{ID: "sim-gpu-1", Models: []string{AnyModel}, Tags: []string{"gpu", "chat", "embeddings"}, Slots: 8,
			ServiceTime: 20 * time.Millisecond, EmbedTime: 4 * time.Millisecond, BatchItemTime: 200 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 1},
		{ID: "sim-gpu-2", Models: []string{AnyModel}, Tags: []string{"gpu", "chat", "embeddings"}, Slots: 8,
			ServiceTime: 25 * time.Millisecond, EmbedTime: 5 * time.Millisecond, BatchItemTime: 250 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 2},
		{ID: "sim-gpu-3", Models: []string{AnyModel}, Tags: []string{"gpu", "chat"}, Slots: 4,
			ServiceTime: 40 * time.Millisecond, EmbedTime: 10 * time.Millisecond, BatchItemTime: 500 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 3},
		{ID: "sim-gpu-4", Models: []string{AnyModel}, Tags: []string{"gpu", "chat"}, Slots: 4,
			ServiceTime: 60 * time.Millisecond, EmbedTime: 15 * time.Millisecond, BatchItemTime: time.Millisecond, Distribution: Lognormal, CV: 0.5, Seed: 4},
		{ID: "sim-embed-1", Models: []string{AnyModel}, Tags: []string{"cpu", "embeddings"}, Slots: 4,
			ServiceTime: 120 * time.Millisecond, EmbedTime: 3 * time.Millisecond, BatchItemTime: 100 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 5},
		{ID: "sim-cpu-1", Models: []string{AnyModel}, Tags: []string{"cpu", "chat"}, Slots: 2,
			ServiceTime: 200 * time.Millisecond, EmbedTime: 30 * time.Millisecond, BatchItemTime: 5 * time.Millisecond, Distribution: Lognormal, CV: 0.5, Seed: 6},
	}
}

// Mixed12 is the fleet of the routing experiments: 2 devices with 4 slots at 40 ms,
// 3 with 2 at 60 ms, 4 with 1 at 120 ms and 3 with 1 at 240 ms. Service times are
// exponential, and the total capacity is 345.8 requests per second.
func Mixed12() []Spec {
	var specs []Spec
	for _, class := range []struct {
		count, slots int
		mean         time.Duration
	}{{2, 4, 40 * time.Millisecond}, {3, 2, 60 * time.Millisecond}, {4, 1, 120 * time.Millisecond}, {3, 1, 240 * time.Millisecond}} {
		for range class.count {
			n := len(specs) + 1
			specs = append(specs, Spec{
				ID: fmt.Sprintf("mixed-%02d", n), Models: []string{AnyModel}, Slots: class.slots,
				ServiceTime: class.mean, Distribution: Exponential, Seed: uint64(n),
			})
		}
	}
	return specs
}
