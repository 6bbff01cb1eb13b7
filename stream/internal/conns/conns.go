// Package conns tracks the open connections of a client.
package conns

import (
	"net"
	"sync"
)

// Set tracks every open connection. The library keeps the connection of a cancelled
// request open until the broker answers; Close must not wait for that.
type Set struct {
	mu     sync.Mutex
	conns  map[*tracked]struct{}
	closed bool
	err    error
}

type tracked struct {
	net.Conn
	set  *Set
	once sync.Once
}

// Add tracks a connection. A closed set closes it and returns the error that it was closed with.
func (s *Set) Add(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return nil, s.err
	}
	if s.conns == nil {
		s.conns = map[*tracked]struct{}{}
	}
	c := &tracked{Conn: conn, set: s}
	s.conns[c] = struct{}{}
	return c, nil
}

// Close implements net.Conn.
func (c *tracked) Close() error {
	c.once.Do(func() {
		c.set.mu.Lock()
		delete(c.set.conns, c)
		c.set.mu.Unlock()
	})
	return c.Conn.Close()
}

// CloseAll closes all connections. Those that are added afterwards are closed, too.
func (s *Set) CloseAll(err error) {
	s.mu.Lock()
	s.closed, s.err = true, err
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// Reopen makes a closed set take connections again, as if the network were back.
func (s *Set) Reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
}
