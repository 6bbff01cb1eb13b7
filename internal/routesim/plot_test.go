package routesim

import (
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTicks(t *testing.T) {
	t.Parallel()
	require.Equal(t, []float64{20, 50, 100, 200}, decades(41.6, 120))
	require.Equal(t, []float64{50, 100}, decades(50, 100), "no more than it takes")
	require.Equal(t, []float64{10, 20}, decades(10, 10), "a single value has a height, too")
	require.Equal(t, []float64{20, 40, 60, 80, 100}, steps(34.5, 100+1e-9))
	require.Equal(t, []float64{0, 2, 4, 6, 8, 10}, steps(0, 10))
	require.Len(t, steps(100, 100), 2)
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Float64Range(1e-3, 1e9).Draw(t, "a"), rapid.Float64Range(1e-3, 1e9).Draw(t, "b")
		low, high := min(a, b), max(a, b)
		for _, ticks := range [][]float64{decades(low, high), steps(low, high)} {
			require.GreaterOrEqual(t, len(ticks), 2)
			require.LessOrEqual(t, len(ticks), 40)
			require.IsIncreasing(t, ticks)
			room := 1e-6 * high
			require.LessOrEqual(t, ticks[0], low+room)
			require.GreaterOrEqual(t, ticks[len(ticks)-1], high-room)
		}
	})
}

func TestDashesGoRoundCorners(t *testing.T) {
	t.Parallel()
	line := []point{{0, 0}, {10, 0}, {10, 10}}
	require.Equal(t, [][]point{line}, dashed(line, nil))
	require.Equal(t, [][]point{{{0, 0}, {6, 0}}, {{8, 0}, {10, 0}, {10, 4}}, {{10, 6}, {10, 10}}}, dashed(line, []float64{6, 2}))
}

// A picture has each curve in its colour, and its name, however long that is,
// leaves the edge of the picture white.
func TestPlotDrawsEveryCurve(t *testing.T) {
	t.Parallel()
	plan := &Plan{
		Arms: Grid{Fleets: []string{"mixed12"}, Arrivals: []string{"poisson"}, Works: []string{"exponential"}, Loads: []float64{0.5, 0.8}, Routers: []int{1},
			Hops: []time.Duration{time.Millisecond}, Bindings: []string{"early"}, Policies: []string{"weighted_round_robin", "expected_finish"}}.Arms(),
		Seeds: 1, First: 1, Tasks: 200,
	}
	rs, err := plan.Run(t.Context(), func(int, int) {})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "routes.png")
	require.NoError(t, Plot(file, rs))
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	img, err := png.Decode(f)
	require.NoError(t, err)
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(img.At(x, y)).(color.RGBA) }
	found := map[color.RGBA]int{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			found[at(x, y)]++
		}
		require.Equal(t, color.RGBA{255, 255, 255, 255}, at(img.Bounds().Dx()-10, y))
	}
	for _, c := range palette[:2] {
		require.Greater(t, found[c.(color.RGBA)], 500)
	}
}
