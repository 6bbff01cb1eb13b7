package harness

import "syscall"

// EndWithParent has the kernel kill the process when the test binary ends, however it
// ends.
func EndWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
