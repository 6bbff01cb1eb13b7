package routesim

import "math"

// Histogram counts times with a relative error below 0.1 %. It is accurate enough
// for every percentile, and hundreds of them fit into memory.
type Histogram struct {
	counts []uint32
	N      int64
	Sum    float64 // seconds
	Max    float64
}

const (
	histLeast = 1e-6 // seconds; anything shorter counts as this
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

// Merge adds the counts of another histogram.
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

// Mean returns the exact mean, in seconds.
func (h *Histogram) Mean() float64 {
	if h.N == 0 {
		return 0
	}
	return h.Sum / float64(h.N)
}

// Quantile returns the time, in seconds, that a fraction q of all does not exceed.
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

// Outcome is the outcome of a run, or of several runs merged. It counts tasks that
// arrived during the measured time, whenever they ended.
type Outcome struct {
	Response Histogram // from arrival to the end of the request, for successful tasks
	Streams  []StreamOutcome
	Devices  []DeviceOutcome

	Tasks    int64   // arrived during the measured time
	Failures int64   // of Tasks: FAILED or EXPIRED
	Ended    int64   // successes during the measured time, whenever they arrived
	Measured float64 // seconds
	Busy     float64 // busy slot-seconds × rate of the slot: tasks that fit into them
	Capacity float64 // tasks per second
	Attempts int64   // requests started during the whole run
	Late     int64   // of Attempts: more than a second after the first fault
	Routed   int64   // assignments during the whole run
	Recalled int64
	MostHeld int    // most tasks in one router's window at a time
	Events   uint64 // events simulated
	Trace    uint64 // hash of all decisions, for comparing runs
	Means    []float64
}

// StreamOutcome is the outcome of one stream of tasks.
type StreamOutcome struct {
	Name     string
	Tasks    int64
	Failures int64
	Response Histogram
	Wait     Histogram // from arrival to the start of the first request
	Chosen   Histogram // from arrival to the first assignment
	Work     float64   // work done during the measured time, in mean tasks
}

// DeviceOutcome is the outcome of one device.
type DeviceOutcome struct {
	ID       string
	Attempts int64 // requests started during the whole run
	Busy     float64
	After    int64 // attempts while it was faulty, more than a second after the fault
}

// Mean returns the mean response time in seconds.
func (o *Outcome) Mean() float64 { return o.Response.Mean() }

// Quantile returns a quantile of the response time in seconds.
func (o *Outcome) Quantile(q float64) float64 { return o.Response.Quantile(q) }

// Goodput returns successes per second of the measured time.
func (o *Outcome) Goodput() float64 {
	if o.Measured == 0 {
		return 0
	}
	return float64(o.Ended) / o.Measured
}

// Utilisation returns the busy fraction of the fleet, with slots weighted by their
// rate.
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
	o.Recalled += b.Recalled
	o.MostHeld = max(o.MostHeld, b.MostHeld)
	o.Events += b.Events
	o.Trace = o.Trace*31 + b.Trace
}
