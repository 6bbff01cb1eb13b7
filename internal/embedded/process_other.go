//go:build unix && !linux

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// dieWithUs cannot be asked of this kernel: see watchUs.
func dieWithUs(*syscall.SysProcAttr, syscall.Signal) {}

// watchUs has a shell wait on a pipe that only we hold open. When we die,
// however, the pipe closes and the shell signals the process. stop ends the
// watch, when the process is gone.
func watchUs(pid int, sig syscall.Signal) (stop func()) {
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

// commandOf is the command line of a process, its words separated by spaces;
// empty when there is no such process.
func commandOf(pid int) string {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out)) + " "
}
