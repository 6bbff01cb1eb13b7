//go:build faults && unix

package fault

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether this build has faults.
const Enabled = true

// armed is the fault that the process was started with, or nil.
var armed atomic.Pointer[trap]

type trap struct {
	name string
	left atomic.Int64 // how many more times the point is reached until it kills
}

// Arm reads the variable. Call it first, before starting anything.
func Arm() error {
	value := os.Getenv(Env)
	if value == "" {
		return nil
	}
	name, times, counted := strings.Cut(value, ":")
	if !slices.ContainsFunc(Points, func(p Point) bool { return p.Name == name }) {
		names := make([]string, 0, len(Points))
		for _, p := range Points {
			names = append(names, p.Name)
		}
		return fmt.Errorf("%s=%s: unknown point: use one of %s", Env, value, strings.Join(names, ", "))
	}
	n := int64(1)
	if counted {
		var err error
		if n, err = strconv.ParseInt(times, 10, 64); err != nil || n < 1 {
			return fmt.Errorf("%s=%s: invalid count %q after the colon: use 1 or more", Env, value, times)
		}
	}
	t := &trap{name: name}
	t.left.Store(n)
	armed.Store(t)
	return nil
}

// At kills the process if it was armed for this point and reaches it for the n-th
// time. In that case it does not return.
func At(name string) {
	t := armed.Load()
	if t == nil || t.name != name || t.left.Add(-1) != 0 {
		return
	}
	// A single unbuffered write, so that the line gets out.
	_, _ = os.Stderr.WriteString("batchyard: fault: killed at " + name + "\n")
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // wait for the signal
}
