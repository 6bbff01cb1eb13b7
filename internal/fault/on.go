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

// Enabled tells whether this build has faults.
const Enabled = true

// armed is the fault that the process was started with; nil: none.
var armed atomic.Pointer[trap]

type trap struct {
	name string
	left atomic.Int64 // passings until it closes
}

// Arm reads the variable. Call it before anything else begins.
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
		return fmt.Errorf("%s=%s: there is no such point; the points are %s", Env, value, strings.Join(names, ", "))
	}
	n := int64(1)
	if counted {
		var err error
		if n, err = strconv.ParseInt(times, 10, 64); err != nil || n < 1 {
			return fmt.Errorf("%s=%s: behind the colon belongs how often the point is passed, a number from 1", Env, value)
		}
	}
	t := &trap{name: name}
	t.left.Store(n)
	armed.Store(t)
	return nil
}

// At kills the process when it was armed for the point and passes it for the
// n-th time. It does not return then: no goroutine that was here does more.
func At(name string) {
	t := armed.Load()
	if t == nil || t.name != name || t.left.Add(-1) != 0 {
		return
	}
	// One write, straight to the descriptor: the line is out, and is the last.
	_, _ = os.Stderr.WriteString("batchyard: fault: killed at " + name + "\n")
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}
