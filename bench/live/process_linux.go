package live

import (
	"os"
	"strings"
	"syscall"
)

// dieWithUs has the kernel end the process when the thread that starts it ends.
// Ctrl-C at the terminal does not reach it: we end it in order.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// loadAverage is that of the last minute; empty when it is not known.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
