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

// Arrival is a task as the world makes it.
type Arrival struct {
	At   time.Duration // since the beginning
	Work float64       // in mean tasks; nobody knows it before the task ends
}

// Stream is a sequence of alike tasks. Begin starts it anew for a seed; the
// function it returns gives one task after the other, ok is false after the last.
type Stream struct {
	Name     string
	Model    string        // empty: Model
	Priority task.Priority // empty: normal
	Level    int
	Tenant   string
	Attempts int           // a task may have; 0: as configured
	Deadline time.Duration // from its arrival; 0: none
	Begin    func(seed uint64) func() (Arrival, bool)
}

// Work draws the work of a task: the mean is 1.
type Work func(rng *rand.Rand) float64

// Exponential work.
func Exponential(rng *rand.Rand) float64 { return rng.ExpFloat64() }

// lognormalCV is the standard deviation over the mean of [Lognormal] work.
const lognormalCV = 2

// Lognormal work: many short tasks and few very long ones.
func Lognormal(rng *rand.Rand) float64 {
	s2 := math.Log(1 + lognormalCV*lognormalCV)
	return math.Exp(-s2/2 + math.Sqrt(s2)*rng.NormFloat64())
}

// Deterministic work, for tests.
func Deterministic(*rand.Rand) float64 { return 1 }

// Streams of random numbers of a run: what is drawn for one purpose moves nothing
// of another, so that all policies get the same tasks.
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

// Poisson is tasks at a rate a second from one time to another.
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

// Burst is n tasks at one moment.
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
	work []float64 // in mean tasks, by generated tokens
	rate float64   // requests a second
}

// maxTrace bounds the requests of a trace.
const maxTrace = 10_000_000

// traceTime is how the trace of Azure writes times.
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
		return nil, fmt.Errorf("reading its head: %w", err)
	}
	if len(head) != 3 || head[0] != "TIMESTAMP" || head[1] != "ContextTokens" || head[2] != "GeneratedTokens" {
		return nil, errors.New("its columns are not TIMESTAMP,ContextTokens,GeneratedTokens")
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
			return nil, fmt.Errorf("line %d: %q is no number of tokens", len(t.work)+2, row[2])
		}
		switch {
		case len(t.work) == 0:
			first = at
		case at.Before(last):
			return nil, fmt.Errorf("line %d is older than the one before", len(t.work)+2)
		default:
			t.gaps = append(t.gaps, at.Sub(last).Seconds())
		}
		last = at
		w := float64(max(1, tokens))
		t.work = append(t.work, w)
		if sum += w; len(t.work) > maxTrace {
			return nil, fmt.Errorf("it has more than %d requests; cut it", maxTrace)
		}
	}
	if len(t.gaps) == 0 || !last.After(first) {
		return nil, errors.New("it has no two requests at different times")
	}
	for i := range t.work {
		t.work[i] *= float64(len(t.work)) / sum
	}
	t.rate = float64(len(t.gaps)) / last.Sub(first).Seconds()
	return &t, nil
}

// Arrivals is the trace's requests with its times scaled to a rate a second. Each
// seed begins at another request; after the last comes the first. work nil means
// the trace's own.
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

// Works is the trace's work without its times.
func (t *Trace) Works(rng *rand.Rand) float64 { return t.work[rng.IntN(len(t.work))] }
