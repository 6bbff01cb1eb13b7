package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/local"
	"github.com/batchyard/batchyard/test/testenv"
)

// runMainVar makes the test binary be the program itself: signals and exit codes
// can only be seen from outside of a process.
const runMainVar = "BATCHYARD_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMainVar) == "1" {
		main()
	}
	for _, name := range []string{"BATCHYARD_SERVER", "BATCHYARD_TENANT", "BATCHYARD_SERVER_KEY"} {
		_ = os.Unsetenv(name) // of the machine on which the tests run
	}
	code := m.Run()
	if err := errors.Join(closeSystem(), testenv.Close()); err != nil {
		fmt.Fprintf(os.Stderr, "closing the services: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// ran is how a command line ended.
type ran struct {
	code     int
	out, err string
}

// try runs a command line in this process.
func try(t *testing.T, stdin string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, err bytes.Buffer
	code := run(ctx, newCLI(strings.NewReader(stdin), &out, &err), args)
	return ran{code, out.String(), err.String()}
}

// ok runs a command line that must succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	r := try(t, "", args...)
	require.Equalf(t, cli.ExitOK, r.code, "batchyard %s: %s%s", strings.Join(args, " "), r.out, r.err)
	return r.out
}

// fixture is a whole Batchyard inside this process, shared by the tests.
type fixture struct {
	*local.System
	config string // file for commands that connect to services themselves
	dir    string
}

var system struct {
	sync.Mutex
	fixture *fixture
	err     error
}

// running returns the shared Batchyard, starting it for the first who asks.
func running(t *testing.T) *fixture {
	t.Helper()
	system.Lock()
	defer system.Unlock()
	if system.fixture == nil && system.err == nil {
		system.fixture, system.err = startSystem()
	}
	require.NoError(t, system.err)
	return system.fixture
}

func startSystem() (*fixture, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	s, err := local.Start(ctx, local.Options{})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "test-batchyard-cli-*")
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	f := &fixture{System: s, dir: dir, config: filepath.Join(dir, "config.yaml")}
	text := fmt.Sprintf("kafka:\n  brokers: [%q]\npostgres:\n  url: %q\nredis:\n  addr: %q\n", s.Stack.Brokers[0], s.Stack.PostgresURL, s.Stack.RedisAddr)
	return f, os.WriteFile(f.config, []byte(text), 0o600)
}

func closeSystem() error {
	system.Lock()
	defer system.Unlock()
	if system.fixture == nil {
		return nil
	}
	return errors.Join(system.fixture.Close(), os.RemoveAll(system.fixture.dir))
}

// write puts a text into a file of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// lines are the lines of a text, without the last, empty one.
func lines(s string) []string {
	if s = strings.TrimRight(s, "\n"); s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// syncBuffer may be read while a process writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
