package harness

import "syscall"

// DieWithUs has the kernel kill the process when we end, however we do.
func DieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
