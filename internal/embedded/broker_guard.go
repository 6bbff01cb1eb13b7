package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxRequestBytes is the largest request that the broker reads, Kafka's own
// default (socket.request.max.bytes).
const maxRequestBytes = 100 << 20

var errNotKafka = errors.New("not a Kafka request")

// guardedListener stands in front of kfake, which trusts what it reads: it
// makes room for whatever length a client announces and has no answer to a
// request kind that it does not know. A browser or a port scan that finds the
// port would take the whole process with it.
type guardedListener struct{ net.Listener }

func newGuardedListener(l net.Listener) net.Listener { return guardedListener{l} }

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: conn}, nil
}

// guardedConn looks at the head of each request (length, request kind) before
// anything is read into memory for it. Only one goroutine reads a connection.
type guardedConn struct {
	net.Conn
	head [6]byte
	seen int // bytes of head that were handed on
	full bool
	left int // bytes of the request after head
}

func (c *guardedConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !c.full {
		if err := c.readHead(); err != nil {
			return 0, err
		}
	}
	if c.seen < len(c.head) {
		n := copy(p, c.head[c.seen:])
		c.seen += n
		c.finish()
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	c.finish()
	return n, err
}

func (c *guardedConn) readHead() error {
	if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(c.head[:4])
	kind := int16(binary.BigEndian.Uint16(c.head[4:]))
	// 8: kind, version and correlation id of the smallest request.
	if size < 8 || size > maxRequestBytes || kmsg.RequestForKey(kind) == nil {
		return fmt.Errorf("reading a request of %d bytes, kind %d, from %s: %w", size, kind, c.RemoteAddr(), errNotKafka)
	}
	c.full, c.seen, c.left = true, 0, int(size)-2
	return nil
}

func (c *guardedConn) finish() {
	if c.seen == len(c.head) && c.left == 0 {
		c.full = false
	}
}
