package routesim

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// canvas is a picture that can do what a diagram needs: lines, dots and words.
// A plotting library brings a dozen fonts and formats, a sixth of the program.
type canvas struct {
	img    *image.RGBA
	faces  map[float64]font.Face // by size
	family *opentype.Font
}

// point is a place in the picture, in pixels from the top left corner.
type point struct{ x, y float64 }

// stroke is how a line looks. Its dashes are lengths drawn and left out in turn.
type stroke struct {
	color  color.Color
	width  float64
	dashes []float64
}

func newCanvas(width, height int) (*canvas, error) {
	family, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return nil, fmt.Errorf("reading the font: %w", err)
	}
	c := &canvas{img: image.NewRGBA(image.Rect(0, 0, width, height)), faces: map[float64]font.Face{}, family: family}
	draw.Draw(c.img, c.img.Bounds(), image.White, image.Point{}, draw.Src)
	return c, nil
}

// line draws a line through the points, with round corners and ends.
func (c *canvas) line(s stroke, points ...point) {
	var shapes [][]point
	for _, dash := range dashed(points, s.dashes) {
		for i, p := range dash {
			shapes = append(shapes, disc(p, s.width/2))
			if i > 0 {
				shapes = append(shapes, bar(dash[i-1], p, s.width/2))
			}
		}
	}
	c.fill(s.color, shapes)
}

func (c *canvas) dot(col color.Color, at point, radius float64) {
	c.fill(col, [][]point{disc(at, radius)})
}

// text writes a line whose baseline goes through at. Of the words, a share of
// left stands left of it: 0 none, 0.5 half, 1 all.
func (c *canvas) text(s string, size float64, col color.Color, at point, left float64) error {
	face, err := c.face(size)
	if err != nil {
		return err
	}
	d := font.Drawer{Dst: c.img, Src: image.NewUniform(col), Face: face}
	x := at.x - left*float64(d.MeasureString(s))/64
	d.Dot = fixed.P(int(math.Round(x)), int(math.Round(at.y)))
	d.DrawString(s)
	return nil
}

// widthOf is how much room a line of text takes.
func (c *canvas) widthOf(s string, size float64) (float64, error) {
	face, err := c.face(size)
	if err != nil {
		return 0, err
	}
	return float64(font.MeasureString(face, s)) / 64, nil
}

func (c *canvas) face(size float64) (font.Face, error) {
	if f := c.faces[size]; f != nil {
		return f, nil
	}
	f, err := opentype.NewFace(c.family, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingFull}) // at 72 DPI, sizes are pixels
	if err != nil {
		return nil, fmt.Errorf("scaling the font: %w", err)
	}
	c.faces[size] = f
	return f, nil
}

// fill colours the union of shapes that all go round in the same direction.
func (c *canvas) fill(col color.Color, shapes [][]point) {
	if len(shapes) == 0 {
		return
	}
	low, high := shapes[0][0], shapes[0][0]
	for _, s := range shapes {
		for _, p := range s {
			low, high = point{min(low.x, p.x), min(low.y, p.y)}, point{max(high.x, p.x), max(high.y, p.y)}
		}
	}
	box := image.Rect(int(math.Floor(low.x)), int(math.Floor(low.y)), int(math.Ceil(high.x)), int(math.Ceil(high.y)))
	if box = box.Intersect(c.img.Bounds()); box.Empty() {
		return
	}
	r := vector.NewRasterizer(box.Dx(), box.Dy()) // no larger than it must be: there are hundreds
	at := func(p point) (x, y float32) {
		return float32(p.x - float64(box.Min.X)), float32(p.y - float64(box.Min.Y))
	}
	for _, s := range shapes {
		r.MoveTo(at(s[0]))
		for _, p := range s[1:] {
			r.LineTo(at(p))
		}
		r.ClosePath()
	}
	r.Draw(c.img, box, image.NewUniform(col), image.Point{})
}

func (c *canvas) write(w io.Writer) error { return png.Encode(w, c.img) }

// disc is a circle with so many corners that none is visible.
func disc(at point, radius float64) []point {
	const corners = 32
	out := make([]point, corners)
	for i := range out {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / corners)
		out[i] = point{at.x + radius*cos, at.y + radius*sin}
	}
	return out
}

// bar is a line from a to b that reaches half its width to both sides. It goes
// round as a disc does.
func bar(a, b point, half float64) []point {
	length := math.Hypot(b.x-a.x, b.y-a.y)
	if length == 0 {
		return disc(a, half)
	}
	dx, dy := half*(b.y-a.y)/length, half*(a.x-b.x)/length
	return []point{{a.x + dx, a.y + dy}, {b.x + dx, b.y + dy}, {b.x - dx, b.y - dy}, {a.x - dx, a.y - dy}}
}

// dashed cuts a line through points into its dashes.
func dashed(points []point, dashes []float64) [][]point {
	if len(dashes) == 0 || len(points) < 2 {
		return [][]point{points}
	}
	out := [][]point{{points[0]}}
	n, left, drawn := 0, dashes[0], true
	for i := 1; i < len(points); i++ {
		a, b := points[i-1], points[i]
		length, at := math.Hypot(b.x-a.x, b.y-a.y), 0.0
		for at+left < length { // a dash or a gap ends before b
			at += left
			p := point{a.x + (b.x-a.x)*at/length, a.y + (b.y-a.y)*at/length}
			if drawn {
				out[len(out)-1] = append(out[len(out)-1], p)
			} else {
				out = append(out, []point{p})
			}
			n, drawn = n+1, !drawn
			left = dashes[n%len(dashes)]
		}
		left -= length - at
		if drawn {
			out[len(out)-1] = append(out[len(out)-1], b)
		}
	}
	return out
}
