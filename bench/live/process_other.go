//go:build !linux

package live

import "syscall"

// endWithParent does nothing: only Linux can do it.
func endWithParent() *syscall.SysProcAttr { return nil }

// loadAverage is not available.
func loadAverage() string { return "" }
