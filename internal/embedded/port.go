package embedded

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Ports are picked below the ephemeral range of Linux and macOS. In that range a
// stopped service could lose its port to one of its own clients: a client that
// keeps dialling a closed loopback port eventually gets that port as its source,
// connects to itself, and holds on to it.
const (
	lowestPort  = 20000
	highestPort = 32000
)

// listen opens a listener on loopback, on the preferred port if that is free and
// not 0, otherwise on any free port.
func listen(preferred int) (net.Listener, error) {
	if preferred != 0 {
		if l, err := listenOn(preferred); err == nil {
			return l, nil
		}
	}
	for range 100 {
		if l, err := listenOn(lowestPort + rand.IntN(highestPort-lowestPort)); err == nil {
			return l, nil
		}
	}
	return listenOn(0)
}

func listenOn(port int) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("listening on loopback port %d: %w", port, err)
	}
	return l, nil
}

func portOf(l net.Listener) int {
	return l.Addr().(*net.TCPAddr).Port
}

// savedPort returns the port that the service in dir used last, or 0. Using it
// again lets clients that know it reconnect.
func savedPort(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, "port"))
	if err != nil {
		return 0
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || port < 1 || port > 65535 {
		return 0
	}
	return port
}

func savePort(dir string, port int) error {
	path := filepath.Join(dir, "port")
	if err := os.WriteFile(path, []byte(strconv.Itoa(port)+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
