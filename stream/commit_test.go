package stream

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
)

// lateCommit holds back the first commit that is written, as a machine does that
// has no time for its connection.
type lateCommit struct {
	mu       sync.Mutex
	seen     int
	once     sync.Once
	held     chan struct{} // closed when it is held
	release  chan struct{}
	answered chan struct{} // closed when the broker has answered it
}

type lateConn struct {
	net.Conn
	late *lateCommit
	mine bool
}

func (c *lateConn) Write(b []byte) (int, error) {
	const offsetCommit, leaveGroup = 8, 13
	key := -1
	if len(b) > 6 {
		key = int(binary.BigEndian.Uint16(b[4:]))
	}
	switch key {
	case offsetCommit:
		c.late.mu.Lock()
		c.late.seen++
		first := c.late.seen == 1
		c.late.mu.Unlock()
		if first {
			close(c.late.held)
			<-c.late.release
			c.mine = true
		}
	case leaveGroup: // after that it would be refused
		c.late.once.Do(func() { close(c.late.release) })
		<-c.late.answered
	}
	return c.Conn.Write(b)
}

func (c *lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.mine {
		c.mine = false
		close(c.late.answered)
	}
	return n, err
}

// The last commit says more than the one before. Should that one arrive after
// it, because nobody waited for its answer, the broker would forget what the
// last one said: the records are done again.
func TestTheLastCommitIsTheLast(t *testing.T) {
	t.Parallel()
	l := open(t, testConfig(t))
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	tr, err := l.newTransport(ctx)
	require.NoError(t, err)
	t.Cleanup(tr.CloseIdleConnections)
	late := &lateCommit{held: make(chan struct{}), release: make(chan struct{}), answered: make(chan struct{})}
	dial := tr.Dial
	tr.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &lateConn{Conn: c, late: late}, nil
	}
	own := &Log{cfg: l.cfg, log: l.log, m: l.m, addr: l.addr, closed: l.closed, transport: tr, layout: l.layout, producer: l.producer}
	own.client = &kafka.Client{Addr: l.addr, Transport: tr}

	require.NoError(t, l.Produce(until(t), Message{Topic: TasksNormal, Key: "k", Value: []byte("1")}, Message{Topic: TasksNormal, Key: "k", Value: []byte("2")}))
	recs := make(chan *Record, 2)
	r := consume(t, own, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, rs []*Record) {
		for _, rec := range rs {
			recs <- rec
		}
	})
	receive(t, recs, "the first record").Done()
	receive(t, late.held, "its commit")
	receive(t, recs, "the second record").Done()
	r.stop()                                                                                               // nothing is in flight any more but the commit
	timer := time.AfterFunc(200*time.Millisecond, func() { late.once.Do(func() { close(late.release) }) }) // when the last commit waits for it
	t.Cleanup(func() { timer.Stop() })
	require.NoError(t, receive(t, r.done, "the end of Consume"))
	receive(t, late.answered, "the answer to the commit")
	lag, err := l.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}
