//go:build !linux

package harness

import "syscall"

// DieWithUs does nothing where the kernel cannot.
func DieWithUs() *syscall.SysProcAttr { return nil }
