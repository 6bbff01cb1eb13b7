package fleet

import (
	"fmt"
	"syscall"
)

// reservePort binds a loopback port, or a free one for 0, without listening on it. Connections to
// it are refused, and the kernel won't hand it out as an ephemeral port, but a
// listener that asks for it by number can still have it (Go sets SO_REUSEADDR). So
// a device keeps its port between Stop and Start.
func reservePort(want int) (port int, release func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	release = func() { _ = syscall.Close(fd) }
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: want}); err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving loopback port %d: %w", want, err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	return addr.(*syscall.SockaddrInet4).Port, release, nil
}
