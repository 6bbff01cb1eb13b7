package embedded

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// signalOnParentDeath has the kernel send sig when the thread that starts the
// process ends.
func signalOnParentDeath(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// watchParent does nothing on Linux: see signalOnParentDeath.
func watchParent(int, syscall.Signal) (stop func()) { return func() {} }

// commandOf returns the command line of a process with its words separated by
// spaces, or "" if there is no such process. Unlike the working directory, any
// user may read it.
func commandOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(raw), "\x00", " ")
}
