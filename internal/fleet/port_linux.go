package fleet

import (
	"fmt"
	"syscall"
)

// reservePort binds a free loopback port without listening on it. Connections to
// it are refused, the kernel gives it to nobody who asks for any port, and a
// listener that names it (Go sets SO_REUSEADDR) may still have it. So a device
// that is stopped and started again cannot lose its port in between.
func reservePort() (port int, release func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	release = func() { _ = syscall.Close(fd) }
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		release()
		return 0, nil, fmt.Errorf("reserving a loopback port: %w", err)
	}
	return addr.(*syscall.SockaddrInet4).Port, release, nil
}
