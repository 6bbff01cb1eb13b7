package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batchyard/batchyard/internal/testenv"
)

// Patience is how long a test waits for something that should only take a moment; it
// allows for a busy machine.
const Patience = 60 * time.Second

// program is a program that is built at most once per test binary.
type program struct {
	once sync.Once
	dir  string // created by build; otherwise empty
	path string
	err  error
}

const module = "github.com/batchyard/batchyard"

var ordinary, faulty program

// Binary returns the path of the batchyard binary: BATCHYARD_BIN if set, otherwise it
// is built, once per test binary.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := Program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Program is Binary for what runs outside of a test, such as an example.
func Program() (string, error) { return ordinary.get(os.Getenv("BATCHYARD_BIN")) }

// FaultBinary is the path of the program with the points of package fault, for
// Installation.Program. BATCHYARD_FAULTS_BIN names one that is ready.
func FaultBinary(t testing.TB) string {
	t.Helper()
	path, err := faulty.get(os.Getenv("BATCHYARD_FAULTS_BIN"), "-tags", "faults")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (p *program) get(ready string, flags ...string) (string, error) {
	p.once.Do(func() {
		if ready != "" {
			p.path, p.err = filepath.Abs(ready)
		} else {
			p.err = p.build(flags)
		}
	})
	return p.path, p.err
}

func (p *program) build(flags []string) error {
	var err error
	if p.dir, err = os.MkdirTemp("", "test-batchyard-bin-*"); err != nil {
		return fmt.Errorf("creating a directory for the program: %w", err)
	}
	// Some tests run it as another user.
	if err := os.Chmod(p.dir, 0o755); err != nil { //nolint:gosec // the program is not secret
		return fmt.Errorf("letting other users into the directory of the program: %w", err)
	}
	p.path = filepath.Join(p.dir, "batchyard")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// The chaos test is a module of its own, which knows less than the program imports.
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("looking for the source of the program: %w", err)
	}
	args := append([]string{"build", "-C", strings.TrimSpace(string(root)), "-o", p.path}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/batchyard")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the program: %w\n%s", err, out)
	}
	return nil
}

// Main runs the tests of a package, closes the embedded services, removes the built
// programs and exits.
func Main(m *testing.M) {
	code := m.Run()
	os.Exit(max(code, CleanUp()))
}

// CleanUp is what Main does after the tests. It returns 1 if that failed, else 0.
func CleanUp() int {
	var err error
	for _, p := range []*program{&ordinary, &faulty} {
		if p.dir != "" {
			err = errors.Join(err, os.RemoveAll(p.dir))
		}
	}
	if err = errors.Join(err, testenv.Close()); err != nil {
		fmt.Fprintf(os.Stderr, "cleaning up after the tests: %v\n", err)
		return 1
	}
	return 0
}

// Eventually waits until a condition holds. If it doesn't, the failure names what was
// expected.
func Eventually(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	if !await(t.Context(), within, holds) {
		t.Fatalf("after %s, this is still not true: %s", within, what)
	}
}

// await polls a condition, immediately and then periodically.
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
