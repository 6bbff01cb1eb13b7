//go:build race

package routesim

// raced: the race detector makes a run about ten times as slow and sees nothing in
// it, which is one goroutine: experiments are shorter then.
const raced = true
