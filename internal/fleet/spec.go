package fleet

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Distributions of the service time around its mean.
const (
	Fixed       = "fixed"
	Exponential = "exponential"
	Lognormal   = "lognormal"
)

// Defaults of the Spec fields that may be left zero.
const (
	DefaultQueue      = 1024
	DefaultSeenKeys   = 1 << 16
	DefaultMaxBody    = 8 << 20
	DefaultDimensions = 8
	DefaultCV         = 2.0
)

// AnyModel in Spec.Models makes a device serve whatever model it is asked for.
const AnyModel = "*"

// Spec says what one simulated device is. The zero value of every field but ID
// is usable: one slot, any model, answers at once.
type Spec struct {
	ID     string   // name of the device
	Models []string // models it serves; none or AnyModel: whatever is asked
	Tags   []string // capability tags, for whoever registers the device
	Slots  int      // requests worked on at the same time; 0 means 1

	// The mean time of a request in its slot is the sum of what applies:
	// ServiceTime (or EmbedTime for embeddings and moderations when it is not
	// zero), the tokens, and MergedItem for every item of a merged request after
	// the first. A sum of zero answers at once, without a timer.
	ServiceTime    time.Duration
	EmbedTime      time.Duration
	PerPromptToken time.Duration
	PerOutputToken time.Duration
	MergedItem     time.Duration

	Distribution string  // of the service time: Fixed (also ""), Exponential or Lognormal
	CV           float64 // coefficient of variation for Lognormal; 0 means DefaultCV
	Seed         uint64  // the n-th request's factor is a function of Seed and n

	Queue      int    // requests that may wait for a slot; 0 means DefaultQueue, negative none
	SeenKeys   int    // task keys remembered for Seen; 0 means DefaultSeenKeys, negative none
	MaxBody    int64  // bytes of a request body; 0 means DefaultMaxBody
	Dimensions int    // of an embedding when the request names none; 0 means DefaultDimensions
	APIKey     string // when set, requests need "Authorization: Bearer <key>"
}

// withDefaults checks the spec and fills what was left zero.
func (s Spec) withDefaults() (Spec, error) {
	if s.ID == "" {
		return s, fmt.Errorf("simulated device: it has no id")
	}
	for name, d := range map[string]time.Duration{
		"ServiceTime": s.ServiceTime, "EmbedTime": s.EmbedTime, "PerPromptToken": s.PerPromptToken,
		"PerOutputToken": s.PerOutputToken, "MergedItem": s.MergedItem,
	} {
		if d < 0 {
			return s, fmt.Errorf("simulated device %s: %s is negative (%s)", s.ID, name, d)
		}
	}
	if s.Slots < 0 || s.CV < 0 || s.Dimensions < 0 || s.Dimensions > maxDimensions {
		return s, fmt.Errorf("simulated device %s: slots, CV and dimensions must not be negative, dimensions at most %d", s.ID, maxDimensions)
	}
	if !slices.Contains([]string{"", Fixed, Exponential, Lognormal}, s.Distribution) {
		return s, fmt.Errorf("simulated device %s: unknown distribution %q; it is one of %s, %s, %s", s.ID, s.Distribution, Fixed, Exponential, Lognormal)
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

// maxFactor caps one draw, so that an unlucky one does not stop a test for minutes.
const maxFactor = 50

// factor is what the n-th request's mean service time is multiplied with. It has
// mean 1 (but for the cap) and depends on the seed and n only.
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

// mix is the finaliser of splitmix64: a cheap bijection whose outputs look random.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// unit maps 64 random bits to (0, 1].
func unit(x uint64) float64 { return (float64(x>>11) + 1) / (1 << 53) }

// Default is the fleet that `batchyard run` uses when no device is named: six
// unequal devices that serve any model, fast enough to show a job through in
// seconds and unequal enough to show that routing matters.
func Default() []Spec {
	return []Spec{
		{ID: "sim-gpu-1", Models: []string{AnyModel}, Tags: []string{"gpu", "chat", "embeddings"}, Slots: 8,
			ServiceTime: 20 * time.Millisecond, EmbedTime: 4 * time.Millisecond, MergedItem: 200 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 1},
		{ID: "sim-gpu-2", Models: []string{AnyModel}, Tags: []string{"gpu", "chat", "embeddings"}, Slots: 8,
			ServiceTime: 25 * time.Millisecond, EmbedTime: 5 * time.Millisecond, MergedItem: 250 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 2},
		{ID: "sim-gpu-3", Models: []string{AnyModel}, Tags: []string{"gpu", "chat"}, Slots: 4,
			ServiceTime: 40 * time.Millisecond, EmbedTime: 10 * time.Millisecond, MergedItem: 500 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 3},
		{ID: "sim-gpu-4", Models: []string{AnyModel}, Tags: []string{"gpu", "chat"}, Slots: 4,
			ServiceTime: 60 * time.Millisecond, EmbedTime: 15 * time.Millisecond, MergedItem: time.Millisecond, Distribution: Lognormal, CV: 0.5, Seed: 4},
		{ID: "sim-embed-1", Models: []string{AnyModel}, Tags: []string{"cpu", "embeddings"}, Slots: 4,
			ServiceTime: 120 * time.Millisecond, EmbedTime: 3 * time.Millisecond, MergedItem: 100 * time.Microsecond, Distribution: Lognormal, CV: 0.5, Seed: 5},
		{ID: "sim-cpu-1", Models: []string{AnyModel}, Tags: []string{"cpu", "chat"}, Slots: 2,
			ServiceTime: 200 * time.Millisecond, EmbedTime: 30 * time.Millisecond, MergedItem: 5 * time.Millisecond, Distribution: Lognormal, CV: 0.5, Seed: 6},
	}
}

// Mixed12 is the fleet of the routing experiments: 2 devices of 4 slots at 40 ms,
// 3 of 2 at 60 ms, 4 of 1 at 120 ms and 3 of 1 at 240 ms, exponential, 345.8
// requests a second in all.
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
