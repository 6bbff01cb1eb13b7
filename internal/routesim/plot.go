package routesim

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// palette is that of Okabe and Ito, which colour-blind people can distinguish.
var palette = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	color.RGBA{0x80, 0x80, 0x80, 0xff}, color.RGBA{0xb8, 0xa9, 0x00, 0xff},
}

var dashes = [][]float64{nil, {9, 6}, {2, 6}}

var (
	ink  = color.Gray{0x26}
	grid = stroke{color: color.Gray{0xd9}, width: 1}
	axis = stroke{color: color.Gray{0x59}, width: 1}
)

// The picture's measures, in pixels.
const (
	pictureWidth   = 1200
	pictureTop     = 64 // above the first panel: what was simulated
	frameLeft      = 90
	frameAbove     = 32 // between a frame and the edges of its panel
	frameBelow     = 64
	frameHeight    = 384 // or more, so that all names find room beside it
	legendGap      = 24  // between a frame and the pieces of its curves, and at the edge of the picture
	legendPiece    = 40
	legendRow      = 24
	titleSize      = 19.0
	textSize       = 15.0
	tickSize       = 14.0
	halfTickHeight = 5 // from a tick to the baseline of its number
)

// panel is one of the plots in the picture: a figure over the load.
type panel struct {
	title string
	log   bool
	value func(*Result) float64
	bound bool
}

var panels = []panel{
	{"Mean response, ms", true, func(r *Result) float64 { return 1000 * r.Outcome.Mean() }, true},
	{"99th percentile of the response, ms", true, func(r *Result) float64 { return 1000 * r.Outcome.Quantile(0.99) }, false},
	{"Utilisation, slots weighted by their rate, %", false, func(r *Result) float64 { return 100 * r.Outcome.Utilisation() }, false},
}

// Plot draws the results over the load into a PNG file, one curve per policy. It
// only uses results with the same settings as the first.
func Plot(path string, rs []Result) (err error) {
	rs = alike(rs)
	if len(rs) == 0 {
		return errors.New("drawing the results: there are no results")
	}
	height := max(frameHeight, legendRow*(len(namesOf(rs))+1)) // one more for the bound
	c, err := newCanvas(pictureWidth, pictureTop+len(panels)*(frameAbove+height+frameBelow))
	if err != nil {
		return fmt.Errorf("drawing the results: %w", err)
	}
	r := &rs[0]
	right, err := frameRight(c, rs)
	errs := []error{err, c.text(fmt.Sprintf("%s, %s arrivals, %s work, %s, dispatch latency %s, %s",
		r.Fleet, r.Arrivals, r.Work, count(r.Routers, "router"), r.Hop, count(r.Seeds, "seed")), titleSize, ink, point{pictureWidth / 2, 38}, 0.5)}
	for i := range panels {
		top := float64(pictureTop + i*(frameAbove+height+frameBelow) + frameAbove)
		errs = append(errs, panels[i].draw(c, frame{top, right, top + float64(height)}, rs))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("drawing the results: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("drawing the results: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := c.write(f); err != nil {
		return fmt.Errorf("drawing the results into %s: %w", path, err)
	}
	return nil
}

// frameRight is where the frames end: what is right of it is as wide as the
// longest name takes.
func frameRight(c *canvas, rs []Result) (float64, error) {
	widest, err := c.widthOf(boundName, textSize)
	for _, name := range namesOf(rs) {
		w, e := c.widthOf(name, textSize)
		widest, err = max(widest, w), errors.Join(err, e)
	}
	return pictureWidth - widest - legendPiece - 2.5*legendGap, err
}

// namesOf are the names of the curves: those of sorted results.
func namesOf(rs []Result) []string {
	var out []string
	for i := range rs {
		out = append(out, rs[i].name())
	}
	return slices.Compact(out)
}

// alike are the results that differ from the first in policy, binding and load only.
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

// curve is a line of a panel. Its points are loads and figures.
type curve struct {
	name   string
	points []point
	look   stroke
	dots   bool
}

// add leaves out what has no place over an axis: a figure of no task at all.
func (k *curve) add(load, figure float64) {
	if figure > 0 && !math.IsInf(figure, 1) {
		k.points = append(k.points, point{load, figure})
	}
}

// curves are those of a panel: one for each policy, and the lower bound.
func (p *panel) curves(rs []Result) ([]curve, error) {
	var out []curve
	for n := 0; len(rs) > 0; n++ {
		k := 1
		for k < len(rs) && rs[k].name() == rs[0].name() {
			k++
		}
		c := curve{name: rs[0].name(), look: stroke{palette[n%len(palette)], 2.4, dashes[n/len(palette)%len(dashes)]}, dots: true}
		if rs[0].Policy == "expected_finish" {
			c.look.width = 4.5
		}
		for i := range rs[:k] {
			c.add(rs[i].Load, p.value(&rs[i]))
		}
		if len(c.points) > 0 {
			out = append(out, c)
		}
		if p.bound && n == 0 {
			b, err := lowerBound(rs[:k])
			if err != nil {
				return nil, err
			}
			if len(b.points) > 0 {
				out = append(out, b)
			}
		}
		rs = rs[k:]
	}
	return out, nil
}

const boundName = "lower bound"

func lowerBound(rs []Result) (curve, error) {
	c := curve{name: boundName, look: stroke{color.Black, 1.8, []float64{0.5, 4.5}}}
	f, err := NamedFleet(rs[0].Fleet)
	if err != nil {
		return c, err
	}
	from, to := rs[0].Load, min(rs[len(rs)-1].Load, 0.995)
	if !(from < to) {
		return c, nil
	}
	for i := range 101 {
		load := from + (to-from)*float64(i)/100
		c.add(load, 1000*LowerBound(f, load*f.Capacity()))
	}
	return c, nil
}

// frame is where a panel's curves are; their names are right of it.
type frame struct{ top, right, bottom float64 }

func (p *panel) draw(c *canvas, f frame, rs []Result) error {
	curves, err := p.curves(rs)
	if err != nil {
		return err
	}
	low, high := math.Inf(1), math.Inf(-1)
	for _, k := range curves {
		for _, q := range k.points {
			low, high = min(low, q.y), max(high, q.y)
		}
	}
	if low > high { // nothing was measured
		low, high = 1, 10
	}
	ticks, scale := steps(low, high), func(v float64) float64 { return v }
	if p.log {
		ticks, scale = decades(low, high), math.Log
	}
	loads := loadsOf(rs)
	margin := max(0.02, 0.03*(loads[len(loads)-1]-loads[0]))
	from, to := loads[0]-margin, loads[len(loads)-1]+margin
	first, last := scale(ticks[0]), scale(ticks[len(ticks)-1])
	place := func(q point) point {
		return point{
			frameLeft + (f.right-frameLeft)*(q.x-from)/(to-from),
			f.bottom - (f.bottom-f.top)*(scale(q.y)-first)/(last-first),
		}
	}
	errs := []error{
		c.text(p.title, titleSize, ink, point{frameLeft, f.top - 14}, 0),
		c.text("offered load, share of the fleet's capacity", textSize, ink, point{(frameLeft + f.right) / 2, f.bottom + 42}, 0.5),
	}
	free := math.Inf(1)
	for _, v := range ticks {
		y := place(point{from, v}).y
		c.line(grid, crisp(frameLeft, y), crisp(f.right, y))
		if y < free { // numbers do not lie on each other
			free = y - tickSize
			errs = append(errs, c.text(number(v), tickSize, ink, point{frameLeft - 8, y + halfTickHeight}, 1))
		}
	}
	free = math.Inf(-1)
	for _, v := range loads {
		x := place(point{v, ticks[0]}).x
		c.line(grid, crisp(x, f.top), crisp(x, f.bottom))
		if x > free {
			free = x + 3*tickSize
			errs = append(errs, c.text(number(v), tickSize, ink, point{x, f.bottom + 20}, 0.5))
		}
	}
	c.line(axis, crisp(frameLeft, f.top), crisp(frameLeft, f.bottom), crisp(f.right, f.bottom))
	for i := len(curves) - 1; i >= 0; i-- { // the first lies on top of the others
		curves[i].draw(c, place)
	}
	for i, k := range curves {
		errs = append(errs, k.explain(c, point{f.right + legendGap, f.top + 10 + float64(i*legendRow)}))
	}
	return errors.Join(errs...)
}

func (k *curve) draw(c *canvas, place func(point) point) {
	at := make([]point, len(k.points))
	for i, p := range k.points {
		at[i] = place(p)
	}
	c.line(k.look, at...)
	if k.dots {
		for _, p := range at {
			c.dot(k.look.color, p, 4.2)
		}
	}
}

// explain writes a curve's name, beside a piece of it.
func (k *curve) explain(c *canvas, at point) error {
	c.line(k.look, at, point{at.x + legendPiece, at.y})
	if k.dots {
		c.dot(k.look.color, point{at.x + legendPiece/2, at.y}, 4.2)
	}
	return c.text(k.name, textSize, ink, point{at.x + legendPiece + legendGap/2, at.y + halfTickHeight}, 0)
}

// crisp is the middle of a pixel: a thin line there does not blur into two.
func crisp(x, y float64) point { return point{math.Floor(x) + 0.5, math.Floor(y) + 0.5} }

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 32) }

// decades are the numbers 1, 2 and 5 of the powers of ten from the last one at or
// below low to the first one at or above high, two at least.
func decades(low, high float64) []float64 {
	var out []float64
	for e := math.Floor(math.Log10(low)); ; e++ {
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			if v <= low {
				out = out[:0]
			}
			out = append(out, v)
			if v >= high && len(out) > 1 {
				return out
			}
		}
	}
}

// steps are round numbers at equal distances, as decades are, about five of them.
// What differs by less than a tenth is not made to look as if it differed much.
func steps(low, high float64) []float64 {
	size := max(high-low, high/10) / 5
	ten := math.Pow(10, math.Floor(math.Log10(size)))
	step := 10 * ten
	for _, m := range []float64{5, 2, 1} {
		if m*ten >= size {
			step = m * ten
		}
	}
	var out []float64
	const rounding = 1e-9 // 100 % may be a little more, and is no reason for a step above it
	first := math.Floor(low/step + rounding)
	for i := first; i <= max(math.Ceil(high/step-rounding), first+1); i++ {
		out = append(out, i*step)
	}
	return out
}

// loadsOf are the loads that were offered.
func loadsOf(rs []Result) []float64 {
	var out []float64
	for i := range rs {
		out = append(out, rs[i].Load)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
