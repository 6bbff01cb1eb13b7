package routesim

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Arrival is the arrival of one task.
type Arrival struct {
	At   time.Duration // since the start of the run
	Work float64       // in mean tasks; unknown to routers until the task ends
}

// Stream is a sequence of similar tasks. Begin starts it for a seed and returns a
// function that returns one arrival per call; ok is false after the last.
type Stream struct {
	Name     string
	Model    string        // empty means Model
	Priority task.Priority // empty means normal
	Level    int
	Tenant   string
	Attempts int           // maximum attempts; 0 means as configured
	Deadline time.Duration // from the arrival; 0 means none
	Begin    func(seed uint64) func() (Arrival, bool)
}

// Work draws the work of a task. Its mean is 1.
type Work func(rng *rand.Rand) float64

// Exponential draws exponentially distributed work.
func Exponential(rng *rand.Rand) float64 { return rng.ExpFloat64() }

// lognormalCV is the coefficient of variation of [Lognormal] work.
const lognormalCV = 2

// Lognormal draws lognormally distributed work: many short tasks and a few very
// long ones.
func Lognormal(rng *rand.Rand) float64 {
	s2 := math.Log(1 + lognormalCV*lognormalCV)
	return math.Exp(-s2/2 + math.Sqrt(s2)*rng.NormFloat64())
}

// Deterministic always returns 1, for tests.
func Deterministic(*rand.Rand) float64 { return 1 }

// The sources of random numbers of a run. Drawing for one purpose doesn't affect
// the others, so all policies get the same tasks.
const (
	rngArrivals = 0x9e3779b97f4a7c15 + iota
	rngWork
	rngSplit
	rngPhases
	rngOrder
	rngPauses
	rngSessions
)

func newRNG(seed, purpose uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed*0x2545f4914f6cdd1d+1, purpose))
}

// Poisson returns a stream of Poisson arrivals, rate per second, between from and to.
func Poisson(rate float64, work Work, from, to time.Duration) func(seed uint64) func() (Arrival, bool) {
	return func(seed uint64) func() (Arrival, bool) {
		gaps, works := newRNG(seed, rngArrivals), newRNG(seed, rngWork)
		at := from.Seconds()
		return func() (Arrival, bool) {
			at += gaps.ExpFloat64() / rate
			if t := time.Duration(at * float64(time.Second)); t < to {
				return Arrival{At: t, Work: work(works)}, true
			}
			return Arrival{}, false
		}
	}
}

// Burst returns a stream of n tasks that all arrive at the same time.
func Burst(n int, work Work, at time.Duration) func(seed uint64) func() (Arrival, bool) {
	return func(seed uint64) func() (Arrival, bool) {
		works, left := newRNG(seed, rngWork), n
		return func() (Arrival, bool) {
			if left--; left < 0 {
				return Arrival{}, false
			}
			return Arrival{At: at, Work: work(works)}, true
		}
	}
}

// Trace is a recorded sequence of requests.
type Trace struct {
	gaps []float64 // seconds from one request to the next
	work []float64 // in mean tasks, proportional to generated tokens
	rate float64   // requests per second
}

// maxTrace is the maximum number of requests in a trace.
const maxTrace = 10_000_000

// traceTime is the time format of the Azure LLM inference traces.
const traceTime = "2006-01-02 15:04:05.9999999"

// ReadTrace reads a trace with the columns TIMESTAMP, ContextTokens and
// GeneratedTokens, oldest request first.
func ReadTrace(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the trace: %w", err)
	}
	defer func() { _ = f.Close() }()
	t, err := parseTrace(f)
	if err != nil {
		return nil, fmt.Errorf("reading the trace %s: %w", path, err)
	}
	return t, nil
}

func parseTrace(r io.Reader) (*Trace, error) {
	c := csv.NewReader(r)
	c.ReuseRecord = true
	head, err := c.Read()
	if err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	if len(head) != 3 || head[0] != "TIMESTAMP" || head[1] != "ContextTokens" || head[2] != "GeneratedTokens" {
		return nil, errors.New("unexpected columns: use TIMESTAMP,ContextTokens,GeneratedTokens")
	}
	var t Trace
	var first, last time.Time
	sum := 0.0
	for {
		row, err := c.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		at, err := time.Parse(traceTime, row[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(t.work)+2, err)
		}
		tokens, err := strconv.Atoi(row[2])
		if err != nil || tokens < 0 {
			return nil, fmt.Errorf("line %d: invalid number of tokens %q", len(t.work)+2, row[2])
		}
		switch {
		case len(t.work) == 0:
			first = at
		case at.Before(last):
			return nil, fmt.Errorf("line %d: earlier than the previous line: sort the trace by time", len(t.work)+2)
		default:
			t.gaps = append(t.gaps, at.Sub(last).Seconds())
		}
		last = at
		w := float64(max(1, tokens))
		t.work = append(t.work, w)
		if sum += w; len(t.work) > maxTrace {
			return nil, fmt.Errorf("more than %d requests: shorten the trace", maxTrace)
		}
	}
	if len(t.gaps) == 0 || !last.After(first) {
		return nil, errors.New("at least two requests at different times are needed")
	}
	for i := range t.work {
		t.work[i] *= float64(len(t.work)) / sum
	}
	t.rate = float64(len(t.gaps)) / last.Sub(first).Seconds()
	return &t, nil
}

// Arrivals returns a stream of the trace's requests, with the gaps scaled to the
// given rate per second. Each seed starts at a different request, and the trace
// repeats from the beginning after its last. If work is nil, the work is that of
// the trace.
func (t *Trace) Arrivals(rate float64, work Work, from, to time.Duration) func(seed uint64) func() (Arrival, bool) {
	return func(seed uint64) func() (Arrival, bool) {
		works := newRNG(seed, rngWork)
		i := newRNG(seed, rngArrivals).IntN(len(t.gaps))
		at := from.Seconds()
		return func() (Arrival, bool) {
			i = (i + 1) % len(t.gaps)
			at += t.gaps[i] * t.rate / rate
			d := time.Duration(at * float64(time.Second))
			if d >= to {
				return Arrival{}, false
			}
			w := t.work[i+1]
			if work != nil {
				w = work(works)
			}
			return Arrival{At: d, Work: w}, true
		}
	}
}

// Works draws the work of a random request of the trace.
func (t *Trace) Works(rng *rand.Rand) float64 { return t.work[rng.IntN(len(t.work))] }
