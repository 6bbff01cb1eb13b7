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

// Ports are taken from below the range that Linux and macOS give to outgoing
// connections. A service that is stopped for a while would otherwise lose its
// port to a client: one that keeps dialling a closed loopback port in that
// range ends up connected to itself and holds the port.
const (
	lowestPort  = 20000
	highestPort = 32000
)

// listen opens a listener on loopback: on the port wanted when it is not 0 and
// free, else on any free port.
func listen(wanted int) (net.Listener, error) {
	if wanted != 0 {
		if l, err := listenOn(wanted); err == nil {
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

// savedPort is the port that dir was served on the last time, or 0. Clients
// that still know it find the service again.
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
