package live

import (
	"os"
	"strings"
	"syscall"
)

// endWithParent has the kernel end the process when the thread that starts it ends.
// Ctrl-C in the terminal does not reach it, so that we can stop it cleanly.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// loadAverage returns the load average of the last minute, or "" if it is unknown.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
