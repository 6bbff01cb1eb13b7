//go:build unix && !linux

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// signalOnParentDeath does nothing here, as only Linux can do it: see watchParent.
func signalOnParentDeath(*syscall.SysProcAttr, syscall.Signal) {}

// watchParent starts a shell that waits on a pipe that only this process holds
// open. However this process dies, the pipe closes and the shell sends sig to pid.
// Call stop when pid is gone.
func watchParent(pid int, sig syscall.Signal) (stop func()) {
	cmd := exec.Command("/bin/sh", "-c", `read -r word; [ "$word" = done ] || kill -"$1" "$2"`, "sh",
		strconv.Itoa(int(sig)), strconv.Itoa(pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return func() {}
	}
	if err := cmd.Start(); err != nil {
		_ = pipe.Close()
		return func() {}
	}
	return func() {
		_, _ = pipe.Write([]byte("done\n"))
		_ = pipe.Close()
		_ = cmd.Wait()
	}
}

// commandOf returns the command line of a process with its words separated by
// spaces, or "" if there is no such process.
func commandOf(pid int) string {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out)) + " "
}
