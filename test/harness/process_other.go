//go:build !linux

package harness

import "syscall"

// EndWithParent does nothing: only Linux can do it.
func EndWithParent() *syscall.SysProcAttr { return nil }
