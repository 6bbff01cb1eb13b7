//go:build !linux

package fleet

import "errors"

// blackhole needs the queue of a listener to be as short as asked for.
func blackhole(int) (release func(), err error) {
	return nil, errors.New("a port that takes no connections can be played on Linux only")
}
