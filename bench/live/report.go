package live

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

func (l Latency) total() time.Duration   { return l.Total }
func (l Latency) waited() time.Duration  { return l.Waited }
func (l Latency) hop() time.Duration     { return l.Hop }
func (l Latency) request() time.Duration { return l.Request }

// back is the time from the end of the request until the result was read, plus what
// Submit took before it set the task's time of submission.
func (l Latency) back() time.Duration { return l.Total - l.Waited - l.Hop - l.Request }

func (t *Turn) throughput() float64     { return float64(t.Tasks) / t.All.Seconds() }
func (t *Turn) throughputMost() float64 { return math.Ceil(most*float64(t.Tasks)) / t.Most.Seconds() }

// mean returns the mean in seconds.
func mean(ls []Latency, of func(Latency) time.Duration) float64 {
	sum := 0.0
	for _, l := range ls {
		sum += of(l).Seconds()
	}
	return sum / float64(max(1, len(ls)))
}

// quantile returns the quantile in seconds.
func quantile(ls []Latency, of func(Latency) time.Duration, q float64) float64 {
	if len(ls) == 0 {
		return 0
	}
	all := make([]float64, len(ls))
	for i, l := range ls {
		all[i] = of(l).Seconds()
	}
	slices.Sort(all)
	return all[min(len(all)-1, max(0, int(math.Ceil(q*float64(len(all))))-1))]
}

// over returns the mean of a figure over the turns, and its standard deviation.
func (r *Result) over(of func(*Turn) float64) (mean, spread float64) {
	n := float64(len(r.Turns))
	if n == 0 {
		return 0, 0
	}
	for i := range r.Turns {
		mean += of(&r.Turns[i]) / n
	}
	if n < 2 {
		return mean, 0
	}
	for i := range r.Turns {
		d := of(&r.Turns[i]) - mean
		spread += d * d / (n - 1)
	}
	return mean, math.Sqrt(spread)
}

// latencies returns the latencies of all turns.
func (r *Result) latencies() []Latency {
	var all []Latency
	for i := range r.Turns {
		all = append(all, r.Turns[i].Latencies...)
	}
	return all
}

// Figures are a policy's figures over all rounds. Scripts rely on the JSON names.
type Figures struct {
	Policy           string  `json:"policy"`
	Rounds           int     `json:"rounds"`
	Tasks            int     `json:"tasks"` // of the backlog
	Throughput       float64 `json:"throughput_per_s"`
	ThroughputSpread float64 `json:"throughput_spread"`
	ThroughputMost   float64 `json:"throughput_95_per_s"`
	Rate             float64 `json:"rate_per_s"` // of the open arrivals
	MeanMS           float64 `json:"mean_ms"`
	MeanSpread       float64 `json:"mean_spread_ms"`
	P50MS            float64 `json:"p50_ms"`
	P99MS            float64 `json:"p99_ms"`
	WaitMS           float64 `json:"wait_ms"`     // of the mean: until it was assigned
	HopMS            float64 `json:"dispatch_ms"` // until its request began, waiting at the device included
	RequestMS        float64 `json:"request_ms"`  // until that was answered
	BackMS           float64 `json:"back_ms"`     // until the result was read
	Utilisation      float64 `json:"utilisation"`
	UtilisationAll   float64 `json:"utilisation_all"`
	Failures         int     `json:"failures"`
}

// Figures returns the figures over all rounds.
func (r *Result) Figures() Figures {
	ls := r.latencies()
	f := Figures{Policy: r.Name, Rounds: len(r.Turns), Rate: r.Rate, P50MS: ms(quantile(ls, Latency.total, 0.5)), P99MS: ms(quantile(ls, Latency.total, 0.99)),
		WaitMS: ms(mean(ls, Latency.waited)), HopMS: ms(mean(ls, Latency.hop)), RequestMS: ms(mean(ls, Latency.request)), BackMS: ms(mean(ls, Latency.back))}
	f.Throughput, f.ThroughputSpread = r.over((*Turn).throughput)
	f.ThroughputMost, _ = r.over((*Turn).throughputMost)
	m, spread := r.over(func(t *Turn) float64 { return mean(t.Latencies, Latency.total) })
	f.MeanMS, f.MeanSpread = ms(m), ms(spread)
	f.Utilisation, _ = r.over(func(t *Turn) float64 { return t.Busy })
	f.UtilisationAll, _ = r.over(func(t *Turn) float64 { return t.BusyAll })
	for i := range r.Turns {
		f.Tasks, f.Failures = r.Turns[i].Tasks, f.Failures+r.Turns[i].Failures
	}
	for _, v := range []*float64{&f.Throughput, &f.ThroughputSpread, &f.ThroughputMost, &f.Utilisation, &f.UtilisationAll} {
		*v = round(*v)
	}
	return f
}

func ms(seconds float64) float64 { return round(seconds * 1000) }

func round(v float64) float64 { return math.Round(v*1000) / 1000 }

// Ratios are a policy's figures divided by the baseline's.
type Ratios struct {
	Of             string  `json:"ratios_of"`
	To             string  `json:"to"`
	Throughput     float64 `json:"throughput"`
	ThroughputMost float64 `json:"throughput_95"`
	Mean           float64 `json:"mean"`
	P50            float64 `json:"p50"`
	P99            float64 `json:"p99"`
}

// Compare divides a policy's figures by the baseline's.
func Compare(baseline, f Figures) Ratios {
	by := func(a, b float64) float64 {
		if b == 0 {
			return 0
		}
		return round(a / b)
	}
	return Ratios{
		Of: f.Policy, To: baseline.Policy, Throughput: by(f.Throughput, baseline.Throughput), ThroughputMost: by(f.ThroughputMost, baseline.ThroughputMost),
		Mean: by(f.MeanMS, baseline.MeanMS), P50: by(f.P50MS, baseline.P50MS), P99: by(f.P99MS, baseline.P99MS),
	}
}

// WriteJSON writes one object per line: the figures of each policy, then the ratios
// of each to the first.
func WriteJSON(w io.Writer, rs []Result) error {
	e := json.NewEncoder(w)
	var lines []any
	for i := range rs {
		lines = append(lines, rs[i].Figures())
	}
	for i := 1; i < len(rs); i++ {
		lines = append(lines, Compare(rs[0].Figures(), rs[i].Figures()))
	}
	for _, l := range lines {
		if err := e.Encode(l); err != nil {
			return fmt.Errorf("writing the results: %w", err)
		}
	}
	return nil
}

// WriteTable writes the results as tables.
func WriteTable(w io.Writer, rs []Result) error {
	if len(rs) == 0 || len(rs[0].Turns) == 0 {
		return nil
	}
	p := &printer{w: w}
	p.line("live, %d rounds of alternating turns: a backlog of %d tasks; open arrivals of %g tasks/s, %d in total", len(rs[0].Turns), rs[0].Turns[0].Tasks, rs[0].Rate, len(rs[0].latencies()))
	for i := range rs {
		if !rs[i].Late {
			p.line("%s runs with early binding, as published; workers.rebalance_spread is 10, so that tasks are not rebalanced", rs[i].Name)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p.w = t
	p.line("tasks/s\t±\tto 95 %%\tutilisation\tmean ms\t±\tp50\tp99\tfailures\t  policy")
	for i := range rs {
		f := rs[i].Figures()
		p.line("%.1f\t%.1f\t%.1f\t%.1f %%\t%.1f\t%.1f\t%.1f\t%.0f\t%d\t  %s",
			f.Throughput, f.ThroughputSpread, f.ThroughputMost, 100*f.Utilisation, f.MeanMS, f.MeanSpread, f.P50MS, f.P99MS, f.Failures, f.Policy)
	}
	for i := 1; i < len(rs); i++ {
		c := Compare(rs[0].Figures(), rs[i].Figures())
		p.line("× %.2f\t\t× %.2f\t\t× %.2f\t\t× %.2f\t× %.2f\t\t  %s to %s", c.Throughput, c.ThroughputMost, c.Mean, c.P50, c.P99, c.Of, c.To)
	}
	p.flush(t)
	p.w = w
	p.line("\nparts of the response time, mean and median in ms:")
	p.w = t
	p.line("until assigned\tuntil request\trequest\tuntil read\t  policy")
	for i := range rs {
		ls := rs[i].latencies()
		both := func(of func(Latency) time.Duration) string {
			return fmt.Sprintf("%.1f %.1f", mean(ls, of)*1000, quantile(ls, of, 0.5)*1000)
		}
		p.line("%s\t%s\t%s\t%s\t  %s", both(Latency.waited), both(Latency.hop), both(Latency.request), both(Latency.back), rs[i].Name)
	}
	p.flush(t)
	return p.err
}

// printer prints lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); err != nil && p.err == nil {
		p.err = fmt.Errorf("writing the table: %w", err)
	}
}

func (p *printer) flush(t *tabwriter.Writer) {
	if err := t.Flush(); err != nil && p.err == nil {
		p.err = fmt.Errorf("writing the table: %w", err)
	}
}
