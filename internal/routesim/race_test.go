//go:build race

package routesim

// raceEnabled shortens experiments under the race detector. It makes runs about ten
// times slower and can't find anything in them, as each run is a single goroutine.
const raceEnabled = true
