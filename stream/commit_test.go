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

	"github.com/batchyard/batchyard/test/testenv"
)

// lateCommit holds back the first commit, as an overloaded machine might.
type lateCommit struct {
	mu       sync.Mutex
	seen     int
	once     sync.Once
	held     chan struct{} // closed when the commit is held back
	release  chan struct{}
	answered chan struct{} // closed when the broker has answered the commit
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
	case leaveGroup: // afterwards the broker would refuse the commit
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

// If the commit before the last one arrived after it, because the consumer did not wait for its
// answer, the broker would forget the last one and the records would be processed again.
func TestALateCommitDoesNotUndoTheLast(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	tr, err := cl.newTransport(ctx)
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
	ownClient := &Client{cfg: cl.cfg, logger: cl.logger, metrics: cl.metrics, addr: cl.addr, closed: cl.closed, transport: tr, layout: cl.layout, producer: cl.producer, refusals: cl.refusals}
	ownClient.kafka = &kafka.Client{Addr: cl.addr, Transport: tr}

	require.NoError(t, cl.Produce(until(t), Message{Topic: TasksNormal, Key: "k", Value: []byte("1")}, Message{Topic: TasksNormal, Key: "k", Value: []byte("2")}))
	recs := make(chan *Record, 2)
	r := consume(t, ownClient, ConsumerConfig{Group: "g", Topic: TasksNormal}, func(_ context.Context, rs []*Record) {
		for _, rec := range rs {
			recs <- rec
		}
	})
	testenv.Receive(t, recs, "the first record").Done()
	testenv.Receive(t, late.held, "its commit")
	testenv.Receive(t, recs, "the second record").Done()
	r.stop()                                                                                               // only the commit is still in flight
	timer := time.AfterFunc(200*time.Millisecond, func() { late.once.Do(func() { close(late.release) }) }) // while the last commit waits for it
	t.Cleanup(func() { timer.Stop() })
	require.NoError(t, testenv.Receive(t, r.done, "the end of Consume"))
	testenv.Receive(t, late.answered, "the answer to the commit")
	lag, err := cl.Lag(until(t), "g", TasksNormal)
	require.NoError(t, err)
	require.Zero(t, lag)
}
