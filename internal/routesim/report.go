package routesim

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
	"time"
)

// line is a result in JSON. Scripts rely on the names.
type line struct {
	Policy      string   `json:"policy"`
	Arrivals    string   `json:"arrivals"`
	Work        string   `json:"work"`
	Load        float64  `json:"load"`
	Routers     int      `json:"routers"`
	HopMS       float64  `json:"dispatch_latency_ms"`
	Seeds       int      `json:"seeds"`
	MeanMS      float64  `json:"mean_ms"`
	P50MS       float64  `json:"p50_ms"`
	P99MS       float64  `json:"p99_ms"`
	P999MS      float64  `json:"p999_ms"`
	Goodput     float64  `json:"goodput_per_s"`
	Utilisation float64  `json:"utilisation"`
	Failures    int64    `json:"failures"`
	BoundMS     *float64 `json:"lower_bound_mean_ms"` // null if the fleet cannot keep up
}

// ms converts to milliseconds, rounded to the microsecond.
func ms(seconds float64) float64 { return round(seconds*1000, 1000) }

func round(v, to float64) float64 { return math.Round(v*to) / to }

// name is the policy, plus the binding if that is not auto.
func (r *Result) name() string {
	if r.Binding == "" || r.Binding == "auto" {
		return r.Policy
	}
	return r.Policy + "/" + r.Binding
}

// WriteJSON writes one JSON object per line and result.
func WriteJSON(w io.Writer, rs []Result) error {
	e := json.NewEncoder(w)
	for i := range rs {
		r := &rs[i]
		o := &r.Outcome
		l := line{
			Policy: r.name(), Arrivals: r.Arrivals, Work: r.Work, Load: round(r.Load, 1e6), Routers: r.Routers, HopMS: ms(r.Hop.Seconds()), Seeds: r.Seeds,
			MeanMS: ms(o.Mean()), P50MS: ms(o.Quantile(0.5)), P99MS: ms(o.Quantile(0.99)), P999MS: ms(o.Quantile(0.999)),
			Goodput: round(o.Goodput(), 1000), Utilisation: round(o.Utilisation(), 1e6), Failures: o.Failures,
		}
		if !math.IsInf(r.Bound, 0) {
			b := ms(r.Bound)
			l.BoundMS = &b
		}
		if err := e.Encode(l); err != nil {
			return fmt.Errorf("writing the results: %w", err)
		}
	}
	return nil
}

// WriteTable writes the results as tables, one per combination of settings.
func WriteTable(w io.Writer, rs []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	last := ""
	for i := range rs {
		r := &rs[i]
		o := &r.Outcome
		if h := r.heading(); h != last {
			if last != "" {
				_, _ = fmt.Fprintln(t) // cannot fail: buffered until Flush
			}
			last = h
			if err := t.Flush(); err != nil {
				return fmt.Errorf("writing the table: %w", err)
			}
			if _, err := fmt.Fprintf(w, "%s\n", h); err != nil {
				return fmt.Errorf("writing the table: %w", err)
			}
			_, _ = fmt.Fprintln(t, "mean ms\t±\tp50\tp99\tp99.9\tgoodput/s\tutilisation\tfailures\t× bound\t  policy")
		}
		times := "-"
		if !math.IsInf(r.Bound, 0) {
			times = strconv.FormatFloat(o.Mean()/r.Bound, 'f', 2, 64)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.1f\t%.1f %%\t%d\t%s\t  %s\n",
			figure(o.Mean()), figure(r.Spread()), figure(o.Quantile(0.5)), figure(o.Quantile(0.99)), figure(o.Quantile(0.999)),
			o.Goodput(), 100*o.Utilisation(), o.Failures, times, r.name())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// heading returns the settings that the arms in a table have in common.
func (r *Result) heading() string {
	bound := "none, the fleet cannot keep up"
	switch {
	case math.IsInf(r.Bound, 0):
	case r.Exact:
		bound = figure(r.Bound) + " ms"
	default:
		bound = figure(r.Bound) + " ms (for exponential work and Poisson arrivals)"
	}
	return fmt.Sprintf("%s, load %g, %s arrivals, %s work, %s, dispatch latency %s, %s; lower bound of the mean: %s",
		r.Fleet, round(r.Load, 1e4), r.Arrivals, r.Work, count(r.Routers, "router"), r.Hop, count(r.Seeds, "seed"), bound)
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}

// figure formats seconds as milliseconds, with at least three significant digits.
func figure(seconds float64) string {
	v := seconds * 1000
	switch {
	case v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// maxLine is the highest rate of an arm in JSON.
type maxLine struct {
	line
	Limit string  `json:"limit"`
	Rate  float64 `json:"rate_per_s"`
}

// WriteMaxRatesJSON writes the highest rates at which arms stay within a limit, one
// JSON object per line.
func WriteMaxRatesJSON(w io.Writer, rs []Result, l Limit) error {
	e := json.NewEncoder(w)
	for i := range rs {
		r := &rs[i]
		o := &r.Outcome
		err := e.Encode(maxLine{
			line: line{
				Policy: r.name(), Arrivals: r.Arrivals, Work: r.Work, Load: round(r.Load, 1e4), Routers: r.Routers, HopMS: ms(r.Hop.Seconds()), Seeds: r.Seeds,
				MeanMS: ms(o.Mean()), P50MS: ms(o.Quantile(0.5)), P99MS: ms(o.Quantile(0.99)), P999MS: ms(o.Quantile(0.999)),
				Goodput: round(o.Goodput(), 1000), Utilisation: round(o.Utilisation(), 1e6), Failures: o.Failures,
			},
			Limit: l.String(), Rate: round(r.Load*o.Capacity, 1000),
		})
		if err != nil {
			return fmt.Errorf("writing the results: %w", err)
		}
	}
	return nil
}

// WriteMaxRates writes the highest rates at which arms stay within a limit, as a
// table.
func WriteMaxRates(w io.Writer, rs []Result, l Limit) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "highest load\ttasks/s\tutilisation\tmean ms\tp50\tp99\t  with %s\n", l)
	for i := range rs {
		r := &rs[i]
		o := &r.Outcome
		_, _ = fmt.Fprintf(t, "%.3f\t%.1f\t%.1f %%\t%s\t%s\t%s\t  %s, %s, %s work, %s, dispatch latency %s\n", r.Load, r.Load*o.Capacity, 100*o.Utilisation(),
			figure(o.Mean()), figure(o.Quantile(0.5)), figure(o.Quantile(0.99)), r.name(), r.Fleet, r.Work, count(r.Routers, "router"), r.Hop)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// ParseLimit parses a limit such as p99=1s.
func ParseLimit(text string) (Limit, error) {
	var q float64
	var d string
	if n, err := fmt.Sscanf(text, "p%f=%s", &q, &d); n != 2 || err != nil || !(q > 0 && q < 100) {
		return Limit{}, fmt.Errorf("invalid limit %q: use one such as p99=1s", text)
	}
	within, err := time.ParseDuration(d)
	if err != nil || within <= 0 {
		return Limit{}, fmt.Errorf("invalid limit %q: use one such as p99=1s", text)
	}
	return Limit{q / 100, within}, nil
}
