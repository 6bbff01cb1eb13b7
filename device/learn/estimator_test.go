package learn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func serviceMS(t testing.TB, e *Estimator, k device.RateKey) float64 {
	t.Helper()
	d, ok := e.Service(k)
	require.True(t, ok)
	return float64(d) / float64(time.Millisecond)
}

// One sample is enough, the first ones are averaged, and idle time does not count.
func TestEstimatorAveragesTheFirst(t *testing.T) {
	e, k := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m"}
	_, ok := e.Service(k)
	require.False(t, ok)
	now := epoch
	for i, want := range []float64{100, 75, 70} {
		now = now.Add(time.Duration(i) * time.Hour) // no decay while there are fewer than MinSamples samples
		e.Learn(k, time.Duration([]int{100, 50, 60}[i])*time.Millisecond, 1, now)
		require.InDelta(t, want, serviceMS(t, e, k), 0.01)
	}
	e.Learn(k, -time.Second, 1, now)
	e.Learn(k, time.Second, 0, now)
	got := map[device.RateKey]device.Rate{}
	e.Take(got)
	require.Equal(t, int64(3), got[k].Samples)
	require.Equal(t, now, got[k].At)
	clear(got)
	e.Take(got)
	require.Empty(t, got, "reported once")
}

// A batched request of n tasks weighs n times as much.
func TestEstimatorCountsTasks(t *testing.T) {
	e, k := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m", Batched: true}
	e.Learn(k, 100*time.Millisecond, 1, epoch)
	e.Learn(k, 900*time.Millisecond, 19, epoch)
	require.InDelta(t, 50, serviceMS(t, e, k), 0.01, "20 tasks in 1000 busy ms")
}

func TestEstimatorStepsAreClamped(t *testing.T) {
	e, k := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m"}
	now := epoch
	learn := func(d time.Duration, n int) {
		for range n {
			now = now.Add(100 * time.Millisecond)
			e.Learn(k, d, 1, now)
		}
	}
	learn(100*time.Millisecond, 50)
	learn(10*time.Minute, 1)
	require.InDelta(t, 125, serviceMS(t, e, k), 0.01, "an outlier")
	learn(100*time.Millisecond, 300)
	require.InDelta(t, 100, serviceMS(t, e, k), 3, "it decays")
	learn(10*time.Second, 50)
	require.Greater(t, serviceMS(t, e, k), 3000.0, "a device that became slow")
	learn(10*time.Millisecond, 300)
	require.Less(t, serviceMS(t, e, k), 800.0, "and fast again within 30 s")

	slow := device.RateKey{DeviceID: "d", Model: "cold"} // the first request loads the model
	e.Learn(slow, 30*time.Second, 1, now)
	for range 60 {
		now = now.Add(time.Second)
		e.Learn(slow, 100*time.Millisecond, 1, now)
	}
	require.Less(t, serviceMS(t, e, slow), 1000.0)
}

// The mean is found for any distribution of service times, and the more precisely the more
// samples arrive within the memory.
func TestEstimatorFindsTheMean(t *testing.T) {
	for name, c := range map[string]struct {
		draw  func(*rand.Rand) float64
		every time.Duration
		off   float64 // mean error, relative
	}{
		"exponential, many": {func(r *rand.Rand) float64 { return r.ExpFloat64() }, 10 * time.Millisecond, 0.04},
		"exponential, few":  {func(r *rand.Rand) float64 { return r.ExpFloat64() }, 3 * time.Second, 0.2},
		"lognormal, many": {func(r *rand.Rand) float64 {
			v := math.Log(5)
			return math.Exp(r.NormFloat64()*math.Sqrt(v) - v/2)
		}, 10 * time.Millisecond, 0.07},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			e, k, now := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m"}, epoch
			sum, n := 0.0, 0
			for i := range 40_000 {
				now = now.Add(c.every)
				e.Learn(k, time.Duration(c.draw(r)*50*float64(time.Millisecond)), 1, now)
				if i > 5000 {
					sum += math.Abs(serviceMS(t, e, k)/50 - 1)
					n++
				}
			}
			require.Less(t, sum/float64(n), c.off)
		})
	}
}

// Invariants: an update changes an estimate by at most the step, estimates stay within the
// range of the samples, and memory is bounded.
func TestEstimatorInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := EstimatorConfig{MaxModels: 4}
		e, now := NewEstimator(cfg), epoch
		lo, hi, seen := map[device.RateKey]float64{}, map[device.RateKey]float64{}, map[device.RateKey]int{}
		for range rapid.IntRange(1, 200).Draw(t, "updates") {
			k := device.RateKey{DeviceID: "d", Model: fmt.Sprint(rapid.IntRange(0, 6).Draw(t, "model"))}
			d := time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "took"))
			n := rapid.IntRange(1, 100).Draw(t, "tasks")
			now = now.Add(time.Duration(rapid.Int64Range(-int64(time.Second), int64(time.Hour)).Draw(t, "later")))
			before, known := e.Service(k)
			if !known {
				delete(lo, k)
				delete(hi, k)
				seen[k] = 0
			}
			e.Learn(k, d, n, now)
			seen[k]++
			after, ok := e.Service(k)
			require.True(t, ok)
			each := float64(d) / float64(n)
			if _, ok := lo[k]; !ok {
				lo[k], hi[k] = each, each
			}
			lo[k], hi[k] = min(lo[k], each), max(hi[k], each)
			require.GreaterOrEqual(t, float64(after), lo[k]*0.999-1)
			require.LessOrEqual(t, float64(after), hi[k]*1.001+1)
			if known && before > 1000 {
				step := 1.25
				if seen[k] <= earlySamples {
					step = earlyStep
				}
				require.LessOrEqual(t, float64(after), float64(before+1)*step*1.001)
				require.GreaterOrEqual(t, float64(after), float64(before-1)/step*0.999)
			}
			require.LessOrEqual(t, len(e.m), 4)
			require.LessOrEqual(t, len(e.changed), len(e.m))
		}
	})
}

func TestEstimatorSeed(t *testing.T) {
	e, k := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m"}
	e.Seed(k, device.Rate{ServiceMS: 100, Samples: 1_000_000, At: epoch})
	require.InDelta(t, 100, serviceMS(t, e, k), 0.01)
	got := map[device.RateKey]device.Rate{}
	e.Take(got)
	require.Empty(t, got, "a seed is not reported")
	e.Learn(k, 50*time.Millisecond, 1, epoch.Add(time.Second))
	require.InDelta(t, 97, serviceMS(t, e, k), 0.5)
	e.Seed(k, device.Rate{ServiceMS: 1, Samples: 1_000_000, At: epoch})
	require.InDelta(t, 97, serviceMS(t, e, k), 0.5, "a seed does not replace samples")
	for _, bad := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		e.Seed(device.RateKey{DeviceID: "d", Model: "x"}, device.Rate{ServiceMS: bad, Samples: 3})
	}
	_, ok := e.Service(device.RateKey{DeviceID: "d", Model: "x"})
	require.False(t, ok)
}

func BenchmarkEstimatorLearn(b *testing.B) {
	e, k, now := NewEstimator(EstimatorConfig{}), device.RateKey{DeviceID: "d", Model: "m"}, epoch
	for b.Loop() {
		now = now.Add(time.Millisecond)
		e.Learn(k, time.Millisecond, 1, now)
	}
}
