package embedded

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// dieWithUs has the kernel send sig when the thread that starts the process ends.
func dieWithUs(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// watchUs is not needed: see dieWithUs.
func watchUs(int, syscall.Signal) (stop func()) { return func() {} }

// commandOf is the command line of a process, its words separated by spaces;
// empty when there is no such process. Unlike its working directory, it may be
// read without rights over the process.
func commandOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(raw), "\x00", " ")
}
