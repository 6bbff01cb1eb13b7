//go:build !linux

package fleet

// reservePort has no portable form: elsewhere the first Start takes any free
// port, and a later Start reports it when somebody else took it meanwhile.
func reservePort() (port int, release func(), err error) {
	return 0, func() {}, nil
}
