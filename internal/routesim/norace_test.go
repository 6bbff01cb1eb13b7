//go:build !race

package routesim

const raced = false
