//go:build !linux

package fleet

// reservePort does nothing, as there is no portable way to do it. The first Start
// takes any free port, and a later Start fails if another process has taken it.
func reservePort() (port int, release func(), err error) {
	return 0, func() {}, nil
}
