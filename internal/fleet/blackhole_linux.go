package fleet

import (
	"fmt"
	"syscall"
)

// blackhole takes a loopback port, and no connections on it: its queue of them is full. Connecting to it takes
// until the client gives up.
func blackhole(port int) (release func(), err error) {
	var fds []int
	release = func() {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}
	socket := func(flags int) (int, error) {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|flags, 0)
		if err == nil {
			fds = append(fds, fd)
		}
		return fd, err
	}
	fail := func(err error) (func(), error) {
		release()
		return nil, fmt.Errorf("taking port %d without connections: %w", port, err)
	}
	fd, err := socket(0)
	if err != nil {
		return fail(err)
	}
	at := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return fail(err)
	}
	if err := syscall.Bind(fd, at); err != nil {
		return fail(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return fail(err)
	}
	const more = 4 // than fit: they fill the queue, and the last ones go on trying
	for range more {
		c, err := socket(syscall.SOCK_NONBLOCK)
		if err != nil {
			return fail(err)
		}
		_ = syscall.Connect(c, at) // it is in progress
	}
	return release, nil
}
