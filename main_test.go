package batchyard_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/batchyard/batchyard/test/harness"
)

// secret signs the callbacks of the server that the tests and examples share.
const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// running is a whole Batchyard as a process of its own, with devices that answer.
var running struct {
	once sync.Once
	url  string
	err  error
	cmd  *exec.Cmd
	dir  string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if running.cmd != nil {
		_ = running.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = running.cmd.Wait()                          // as it was told to
		_ = os.RemoveAll(running.dir)
	}
	os.Exit(max(code, harness.CleanUp()))
}

// server is the address of the shared server, which the first call starts.
func server() (url string, err error) {
	running.once.Do(func() { running.err = startServer() })
	return running.url, running.err
}

func startServer() error {
	program, err := harness.Program()
	if err != nil {
		return err
	}
	if running.dir, err = os.MkdirTemp("", "test-batchyard-client-*"); err != nil {
		return fmt.Errorf("making a directory for the server: %w", err)
	}
	if err := os.Chmod(running.dir, 0o755); err != nil { // Postgres runs as another user where we are root
		return fmt.Errorf("opening the server's directory: %w", err)
	}
	cmd := exec.Command(program, "dev", "--listen", "127.0.0.1:0")
	cmd.Dir, cmd.Stderr = running.dir, os.Stderr
	cmd.SysProcAttr = harness.EndWithParent()
	cmd.Env = []string{"BATCHYARD_CALLBACK_SECRET=" + secret}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "BATCHYARD_") { // settings of the machine on which the tests run
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	running.cmd = cmd
	address := make(chan string, 1)
	go func() {
		defer close(address)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if m := regexp.MustCompile(`API\s+(http://\S+)`).FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 3*harness.Patience)
	defer cancel()
	select {
	case url, ok := <-address:
		if !ok {
			return fmt.Errorf("the server ended before it was ready: %w", cmd.Wait())
		}
		running.url = url
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the server was not ready within %s", 3*harness.Patience)
	}
}
