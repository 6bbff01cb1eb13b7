//go:build !linux

package live

import "syscall"

// dieWithUs cannot be asked of this kernel.
func dieWithUs() *syscall.SysProcAttr { return nil }

// loadAverage is not known.
func loadAverage() string { return "" }
