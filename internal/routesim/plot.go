package routesim

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// palette is that of Okabe and Ito, which colour-blind people can distinguish.
var palette = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	color.RGBA{0x80, 0x80, 0x80, 0xff}, color.RGBA{0xb8, 0xa9, 0x00, 0xff},
}

var dashes = [][]vg.Length{nil, {vg.Points(6), vg.Points(3)}, {vg.Points(2), vg.Points(2)}}

// panel is one of the plots in the picture: a figure over the load.
type panel struct {
	title, y string
	log      bool
	value    func(*Result) float64
	bound    bool
}

var panels = []panel{
	{"Mean response", "ms", true, func(r *Result) float64 { return 1000 * r.Outcome.Mean() }, true},
	{"99th percentile of the response", "ms", true, func(r *Result) float64 { return 1000 * r.Outcome.Quantile(0.99) }, false},
	{"Utilisation, slots weighted by their rate", "%", false, func(r *Result) float64 { return 100 * r.Outcome.Utilisation() }, false},
}

// Plot draws the results over the load into a PNG file, one curve per policy. It
// only uses results with the same settings as the first.
func Plot(path string, rs []Result) (err error) {
	rs = alike(rs)
	if len(rs) == 0 {
		return errors.New("drawing the results: there are no results")
	}
	const rows, width, height = 3, 24 * vg.Centimeter, 38 * vg.Centimeter
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(110), vgimg.UseBackgroundColor(color.White))
	tiles := draw.Tiles{
		Rows: rows, Cols: 1, PadX: vg.Millimeter, PadY: 6 * vg.Millimeter,
		PadTop: 4 * vg.Millimeter, PadBottom: 4 * vg.Millimeter, PadLeft: 4 * vg.Millimeter, PadRight: 6 * vg.Millimeter,
	}
	plots := make([][]*plot.Plot, rows)
	for i := range panels {
		p, err := panels[i].draw(rs)
		if err != nil {
			return fmt.Errorf("drawing the results: %w", err)
		}
		if i == 0 {
			r := &rs[0]
			p.Title.Text = fmt.Sprintf("%s, %s arrivals, %s work, %s, dispatch latency %s, %s\n\n%s",
				r.Fleet, r.Arrivals, r.Work, count(r.Routers, "router"), r.Hop, count(r.Seeds, "seed"), panels[i].title)
		}
		plots[i] = []*plot.Plot{p}
	}
	for i, row := range plot.Align(plots, tiles, draw.New(img)) {
		plots[i][0].Draw(row[0])
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("drawing the results: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		return fmt.Errorf("drawing the results into %s: %w", path, err)
	}
	return nil
}

// alike returns the results that differ from the first only in policy, binding and
// load.
func alike(rs []Result) []Result {
	var out []Result
	for _, r := range rs {
		a, b := r.Arm, rs[0].Arm
		a.Policy, a.Binding, a.Load = b.Policy, b.Binding, b.Load
		if a == b {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Result) int { return cmp.Or(strings.Compare(a.name(), b.name()), cmp.Compare(a.Load, b.Load)) })
	return out
}

func (p *panel) draw(rs []Result) (*plot.Plot, error) {
	d := plot.New()
	d.Title.Text, d.X.Label.Text, d.Y.Label.Text = p.title, "offered load (fraction of the fleet's capacity)", p.y
	d.Title.TextStyle.Font.Size, d.Title.Padding = 13, 2*vg.Millimeter
	d.Add(plotter.NewGrid())
	if p.log {
		d.Y.Scale, d.Y.Tick.Marker = plot.LogScale{}, decades{}
	}
	d.Legend.Top, d.Legend.Padding, d.Legend.XOffs = true, vg.Points(1), -vg.Millimeter
	from, to := rs[0].Load, rs[0].Load
	for i := range rs {
		from, to = min(from, rs[i].Load), max(to, rs[i].Load)
	}
	// Leave room for the legend on the right.
	d.X.Min, d.X.Max = from-0.02, from+max(0.05, 1.4*(to-from))
	d.X.Tick.Marker = loads(rs)
	n := 0
	for len(rs) > 0 {
		k := 1
		for k < len(rs) && rs[k].name() == rs[0].name() {
			k++
		}
		if err := p.curve(d, rs[:k], n); err != nil {
			return nil, err
		}
		if p.bound && n == 0 {
			if err := p.drawBound(d, rs[:k]); err != nil {
				return nil, err
			}
		}
		n++
		rs = rs[k:]
	}
	return d, nil
}

func (p *panel) curve(d *plot.Plot, rs []Result, n int) error {
	var xy plotter.XYs
	for i := range rs {
		if v := p.value(&rs[i]); v > 0 {
			xy = append(xy, plotter.XY{X: rs[i].Load, Y: v})
		}
	}
	if len(xy) == 0 {
		return nil
	}
	line, points, err := plotter.NewLinePoints(xy)
	if err != nil {
		return err
	}
	line.Color, line.Width, line.Dashes = palette[n%len(palette)], vg.Points(1.6), dashes[n/len(palette)%len(dashes)]
	points.Color, points.Shape, points.Radius = line.Color, draw.CircleGlyph{}, vg.Points(2.6)
	if rs[0].Policy == "expected_finish" {
		line.Width = vg.Points(3)
	}
	d.Add(line, points)
	d.Legend.Add(rs[0].name(), line, points)
	return nil
}

func (p *panel) drawBound(d *plot.Plot, rs []Result) error {
	f, err := NamedFleet(rs[0].Fleet)
	if err != nil {
		return err
	}
	from, to := rs[0].Load, min(rs[len(rs)-1].Load, 0.995)
	if !(from < to) {
		return nil
	}
	var xy plotter.XYs
	for i := range 101 {
		load := from + (to-from)*float64(i)/100
		xy = append(xy, plotter.XY{X: load, Y: 1000 * LowerBound(f, load*f.Capacity())})
	}
	line, err := plotter.NewLine(xy)
	if err != nil {
		return err
	}
	line.Color, line.Dashes, line.Width = color.Black, []vg.Length{vg.Points(1), vg.Points(2)}, vg.Points(1.2)
	d.Add(line)
	d.Legend.Add("lower bound", line)
	return nil
}

// decades puts ticks at 1, 2 and 5 times each power of ten.
type decades struct{}

// Ticks implements [plot.Ticker].
func (decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%g", v)})
			}
		}
	}
	return ticks
}

// loads puts ticks at the offered loads.
type loads []Result

// Ticks implements [plot.Ticker].
func (l loads) Ticks(float64, float64) []plot.Tick {
	var ticks []plot.Tick
	for i := range l {
		if v := l[i].Load; !slices.ContainsFunc(ticks, func(t plot.Tick) bool { return t.Value == v }) {
			ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.4g", v)})
		}
	}
	return ticks
}
