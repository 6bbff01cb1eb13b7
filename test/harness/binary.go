package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/batchyard/batchyard/internal/testenv"
)

// Patience is how long a test waits for what should take a moment, on a machine
// that has other things to do.
const Patience = 60 * time.Second

var binary struct {
	once sync.Once
	dir  string // made by us; empty when none was
	path string
	err  error
}

// Binary is the path of the program. BATCHYARD_BIN names one that is ready;
// otherwise it is built, once in a test binary.
func Binary(t testing.TB) string {
	t.Helper()
	binary.once.Do(func() { binary.path, binary.err = build() })
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

func build() (string, error) {
	if ready := os.Getenv("BATCHYARD_BIN"); ready != "" {
		return filepath.Abs(ready)
	}
	var err error
	if binary.dir, err = os.MkdirTemp("", "test-batchyard-bin-*"); err != nil {
		return "", fmt.Errorf("making a directory for the program: %w", err)
	}
	// Ordinary users run it, too.
	if err := os.Chmod(binary.dir, 0o755); err != nil { //nolint:gosec // a program may be read
		return "", fmt.Errorf("opening the directory of the program: %w", err)
	}
	path := filepath.Join(binary.dir, "batchyard")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/batchyard/batchyard/cmd/batchyard")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program: %w\n%s", err, out)
	}
	return path, nil
}

// Main runs the tests of a package, ends the embedded services, removes the
// program and exits.
func Main(m *testing.M) {
	code := m.Run()
	var err error
	if binary.dir != "" {
		err = os.RemoveAll(binary.dir)
	}
	if err = errors.Join(err, testenv.Close()); err != nil {
		fmt.Fprintf(os.Stderr, "cleaning up after the tests: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Eventually waits until a condition holds. It says what it waited for.
func Eventually(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	if !await(t.Context(), within, holds) {
		t.Fatalf("after %s, this does not hold: %s", within, what)
	}
}

// await asks again and again, at once first.
func await(ctx context.Context, within time.Duration, holds func() bool) bool {
	limit := time.NewTimer(within)
	defer limit.Stop()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		if holds() {
			return true
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return holds()
		case <-ctx.Done():
			return false
		}
	}
}
