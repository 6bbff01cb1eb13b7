package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxRequestBytes is the largest request the broker reads: Kafka's default for
// socket.request.max.bytes.
const maxRequestBytes = 100 << 20

var errNotKafka = errors.New("not a Kafka request")

// guardedListener protects kfake, which trusts its input: it allocates whatever
// length a client announces, and panics on a request key it doesn't know. Without
// the guard, a browser or a port scan could take the whole process down.
type guardedListener struct{ net.Listener }

func newGuardedListener(l net.Listener) net.Listener { return guardedListener{l} }

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: conn}, nil
}

// guardedConn checks the head of each request (length and request key) before
// anything else of it is read. Only one goroutine reads from a connection.
type guardedConn struct {
	net.Conn
	head     [6]byte
	passed   int // bytes of head already given to the reader
	haveHead bool
	left     int // bytes of the request that follow head
}

func (c *guardedConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !c.haveHead {
		if err := c.readHead(); err != nil {
			return 0, err
		}
	}
	if c.passed < len(c.head) {
		n := copy(p, c.head[c.passed:])
		c.passed += n
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
	key := int16(binary.BigEndian.Uint16(c.head[4:]))
	// The smallest request has 8 bytes: key, version and correlation id.
	if size < 8 || size > maxRequestBytes || kmsg.RequestForKey(key) == nil {
		return fmt.Errorf("reading a request of %d bytes with key %d from %s: %w", size, key, c.RemoteAddr(), errNotKafka)
	}
	c.haveHead, c.passed, c.left = true, 0, int(size)-2
	return nil
}

func (c *guardedConn) finish() {
	if c.passed == len(c.head) && c.left == 0 {
		c.haveHead = false
	}
}
