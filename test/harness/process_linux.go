package harness

import "syscall"

// dieWithUs has the kernel kill the process when we end, however we do.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
