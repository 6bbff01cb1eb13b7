package live

import (
	"os"
	"strings"
	"syscall"
)

// dieWithUs has the kernel end the process when the thread that starts it ends.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// loadAverage is that of the last minute; empty when it is not known.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
