package routesim

import "math"

// Histogram counts times with a relative error below 0.1 %: wide enough for every
// percentile of every arm, small enough that hundreds of arms fit into memory.
type Histogram struct {
	counts []uint32
	N      int64
	Sum    float64 // seconds
	Max    float64
}

const (
	histLeast = 1e-6 // seconds; what is shorter counts as this
	histBase  = 1.001
)

var histStep = math.Log(histBase)

// Add counts a time in seconds.
func (h *Histogram) Add(s float64) {
	i := 0
	if s > histLeast {
		i = int(math.Log(s/histLeast) / histStep)
	}
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint32, i+1024-len(h.counts))...)
	}
	h.counts[i]++
	h.N++
	h.Sum += s
	h.Max = max(h.Max, s)
}

// Merge adds what another one counted.
func (h *Histogram) Merge(o *Histogram) {
	if len(o.counts) > len(h.counts) {
		h.counts = append(h.counts, make([]uint32, len(o.counts)-len(h.counts))...)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.N += o.N
	h.Sum += o.Sum
	h.Max = max(h.Max, o.Max)
}

// Mean is in seconds; it is exact.
func (h *Histogram) Mean() float64 {
	if h.N == 0 {
		return 0
	}
	return h.Sum / float64(h.N)
}

// Quantile is the time in seconds that a share q of all does not exceed.
func (h *Histogram) Quantile(q float64) float64 {
	if h.N == 0 {
		return 0
	}
	want := max(1, int64(math.Ceil(q*float64(h.N))))
	seen := int64(0)
	for i, n := range h.counts {
		if seen += int64(n); seen >= want {
			return min(h.Max, histLeast*math.Exp((float64(i)+0.5)*histStep))
		}
	}
	return h.Max
}

// Outcome is what came of a run, or of the runs of several seeds together. Tasks
// count that arrived in the measured time, whenever they ended.
type Outcome struct {
	Response Histogram // arrival to the end of the request, of tasks that succeeded
	Streams  []StreamOutcome
	Devices  []DeviceOutcome

	Tasks    int64   // that arrived in the measured time
	Failures int64   // of them: FAILED or EXPIRED
	Ended    int64   // successes within the measured time, whenever they arrived
	Measured float64 // seconds
	Busy     float64 // slot-seconds × rate of the slot, as tasks that could have been done
	Capacity float64 // tasks a second
	Attempts int64   // requests begun, in the whole run
	Late     int64   // of them: later than a second after the first device changed its ways
	Routed   int64   // assignments, in the whole run
	Parked   int64
	MostHeld int    // tasks in one router's window at a time, at most
	Events   uint64 // of the simulation
	Trace    uint64 // sum over all decisions, for comparing runs
	Means    []float64
}

// StreamOutcome is what came of one stream of tasks.
type StreamOutcome struct {
	Name     string
	Tasks    int64
	Failures int64
	Response Histogram
	Wait     Histogram // arrival to the start of the first request
	Chosen   Histogram // arrival to the first assignment
	Work     float64   // work done within the measured time, in mean tasks
}

// DeviceOutcome is what came of one device.
type DeviceOutcome struct {
	ID       string
	Attempts int64 // requests begun in the whole run
	Busy     float64
	After    int64 // attempts later than a second after it changed its ways
}

// Mean is the mean response in seconds.
func (o *Outcome) Mean() float64 { return o.Response.Mean() }

// Quantile is that of the response in seconds.
func (o *Outcome) Quantile(q float64) float64 { return o.Response.Quantile(q) }

// Goodput is successes a second of the measured time.
func (o *Outcome) Goodput() float64 {
	if o.Measured == 0 {
		return 0
	}
	return float64(o.Ended) / o.Measured
}

// Utilisation is the busy share of the fleet, slots weighted by their rate.
func (o *Outcome) Utilisation() float64 {
	if o.Measured == 0 || o.Capacity == 0 {
		return 0
	}
	return o.Busy / (o.Measured * o.Capacity)
}

// Merge adds the outcome of another seed.
func (o *Outcome) Merge(b *Outcome) {
	if o.Streams == nil {
		o.Streams = make([]StreamOutcome, len(b.Streams))
		o.Devices = make([]DeviceOutcome, len(b.Devices))
	}
	o.Means = append(o.Means, b.Mean())
	o.Response.Merge(&b.Response)
	for i := range b.Streams {
		s, t := &o.Streams[i], &b.Streams[i]
		s.Name = t.Name
		s.Tasks += t.Tasks
		s.Failures += t.Failures
		s.Work += t.Work
		s.Response.Merge(&t.Response)
		s.Wait.Merge(&t.Wait)
		s.Chosen.Merge(&t.Chosen)
	}
	for i := range b.Devices {
		d, e := &o.Devices[i], &b.Devices[i]
		d.ID = e.ID
		d.Attempts += e.Attempts
		d.Busy += e.Busy
		d.After += e.After
	}
	o.Tasks += b.Tasks
	o.Failures += b.Failures
	o.Ended += b.Ended
	o.Measured += b.Measured
	o.Busy += b.Busy
	o.Capacity = b.Capacity
	o.Attempts += b.Attempts
	o.Late += b.Late
	o.Routed += b.Routed
	o.Parked += b.Parked
	o.MostHeld = max(o.MostHeld, b.MostHeld)
	o.Events += b.Events
	o.Trace = o.Trace*31 + b.Trace
}
