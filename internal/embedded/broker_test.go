package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

func startBroker(t *testing.T, dir string) *Broker {
	t.Helper()
	b, err := StartBroker(within(t), BrokerOptions{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func produce(t *testing.T, addr, topic string, values ...string) {
	t.Helper()
	w := &kafka.Writer{
		Addr: kafka.TCP(addr), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond,
	}
	defer func() { require.NoError(t, w.Close()) }()
	msgs := make([]kafka.Message, len(values))
	for i, v := range values {
		msgs[i].Value = []byte(v)
	}
	require.NoError(t, w.WriteMessages(within(t), msgs...))
}

// consume reads partition 0 of topic from its start.
func consume(t *testing.T, addr, topic string, n int) []string {
	t.Helper()
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{addr}, Topic: topic, MinBytes: 1, MaxBytes: 10 << 20, MaxWait: 50 * time.Millisecond,
	})
	defer func() { require.NoError(t, r.Close()) }()
	got := make([]string, 0, n)
	for range n {
		m, err := r.ReadMessage(within(t))
		require.NoError(t, err)
		got = append(got, string(m.Value))
	}
	return got
}

func TestBrokerKeepsRecordsAcrossRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := startBroker(t, dir)
	require.NoError(t, createTopic(within(t), b.Addr(), "a", nil))
	produce(t, b.Addr(), "a", "one", "two")

	addr := b.Addr()
	require.NoError(t, b.Stop())
	_, err := net.Dial("tcp", addr)
	require.Error(t, err, "a stopped broker must not accept connections")
	require.NoError(t, b.Restart(within(t)))
	require.Equal(t, addr, b.Addr())
	require.Equal(t, []string{"one", "two"}, consume(t, addr, "a", 2))

	require.NoError(t, b.Close())
	again := startBroker(t, dir)
	require.Equal(t, addr, again.Addr(), "the port is saved in the directory")
	produce(t, addr, "a", "three")
	require.Equal(t, []string{"one", "two", "three"}, consume(t, addr, "a", 3))
}

func TestBrokerKeepsAcknowledgedRecordsWhenKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child, lines := startChild(t, "produce", dir)
	acked := -1
	for acked < 5_000 && lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		require.NoError(t, err)
		acked = n
	}
	require.NoError(t, child.Process.Kill())
	for lines.Scan() { // records acknowledged before the signal arrived
		if n, err := strconv.Atoi(lines.Text()); err == nil {
			acked = n
		}
	}
	require.Error(t, child.Wait())
	require.GreaterOrEqual(t, acked, 5_000)

	b := startBroker(t, dir)
	for i, v := range consume(t, b.Addr(), "numbers", acked+1) {
		require.Equal(t, strconv.Itoa(i), v)
	}
}

func TestBrokerLocksItsDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	startBroker(t, dir)
	_, err := StartBroker(within(t), BrokerOptions{Dir: dir})
	require.ErrorContains(t, err, "in use by another process")
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
}

func TestBrokerDoesNotCreateTopicsOnFirstUse(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "")
	w := &kafka.Writer{
		Addr: kafka.TCP(b.Addr()), Topic: "never-created", RequiredAcks: kafka.RequireAll,
		AllowAutoTopicCreation: true, MaxAttempts: 2, BatchTimeout: time.Millisecond,
	}
	defer func() { require.NoError(t, w.Close()) }()
	require.Error(t, w.WriteMessages(within(t), kafka.Message{Value: []byte("x")}))
}

func TestBrokerRejectsRecordsOverTheTopicLimit(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "")
	require.NoError(t, createTopic(within(t), b.Addr(), "small", map[string]string{"max.message.bytes": "1000"}))
	w := &kafka.Writer{
		Addr: kafka.TCP(b.Addr()), Topic: "small", RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, MaxAttempts: 1,
	}
	defer func() { require.NoError(t, w.Close()) }()
	var errs kafka.WriteErrors
	require.ErrorAs(t, w.WriteMessages(within(t), kafka.Message{Value: make([]byte, 2000)}), &errs)
	require.ErrorIs(t, errs[0], kafka.MessageSizeTooLarge)
	require.NoError(t, w.WriteMessages(within(t), kafka.Message{Value: make([]byte, 500)}))
}

func TestBrokerSurvivesNonKafkaClients(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "")
	frame := func(size uint32, key int16) []byte {
		raw := binary.BigEndian.AppendUint32(nil, size)
		return append(binary.BigEndian.AppendUint16(raw, uint16(key)), make([]byte, 64)...)
	}
	for name, sent := range map[string][]byte{
		"HTTP request": []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"huge length":  frame(1<<32-1, 0),
		"empty frame":  frame(0, 0),
		"unknown key":  frame(40, 30_000),
		"negative key": frame(40, -1),
	} {
		conn, err := net.Dial("tcp", b.Addr())
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = conn.Write(sent)
		require.NoError(t, err)
		// The connection is closed without an answer. The kernel may send a reset
		// because there were unread bytes.
		n, err := io.Copy(io.Discard, conn)
		var timeout net.Error
		require.False(t, n > 0 || (err != nil && errors.As(err, &timeout) && timeout.Timeout()), "%s: %d bytes, %v", name, n, err)
		_ = conn.Close()
	}
	require.NoError(t, createTopic(within(t), b.Addr(), "a", nil))
	produce(t, b.Addr(), "a", "still here")
	require.Equal(t, []string{"still here"}, consume(t, b.Addr(), "a", 1))
}

func TestBrokerKeepsOffsetsCommittedAfterTornWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := startBroker(t, dir)
	require.NoError(t, createTopic(within(t), b.Addr(), "a", nil))
	commit(t, b.Addr(), 1)
	require.NoError(t, b.Close())

	// Half an entry, as left by a process that is killed while writing.
	f, err := os.OpenFile(filepath.Join(dir, brokerDir, "groups.log"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write([]byte{200, 0, 0, 0, 1, 2, 3, 4, 1, 0, '{'})
	require.NoError(t, err)
	require.NoError(t, f.Close())

	// Start again, commit, and take a copy of the directory: that is what a killed
	// process leaves. A clean shutdown would rewrite the file.
	again := startBroker(t, dir)
	require.EqualValues(t, 1, committed(t, again.Addr()))
	commit(t, again.Addr(), 2)
	killed := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(killed, brokerDir), os.DirFS(filepath.Join(dir, brokerDir))))
	require.NoError(t, os.Remove(filepath.Join(killed, brokerDir, "port")))

	last := startBroker(t, killed)
	require.EqualValues(t, 2, committed(t, last.Addr()))
}

func commit(t *testing.T, addr string, offset int64) {
	t.Helper()
	c := newClient(addr)
	res, err := c.OffsetCommit(within(t), &kafka.OffsetCommitRequest{
		GroupID: "g", GenerationID: -1,
		Topics: map[string][]kafka.OffsetCommit{"a": {{Partition: 0, Offset: offset, Metadata: fmt.Sprint("at ", offset)}}},
	})
	require.NoError(t, err)
	require.NoError(t, res.Topics["a"][0].Error)
}

func committed(t *testing.T, addr string) int64 {
	t.Helper()
	c := newClient(addr)
	res, err := c.OffsetFetch(within(t), &kafka.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{"a": {0}}})
	require.NoError(t, err)
	require.NoError(t, res.Error)
	require.Equal(t, fmt.Sprint("at ", res.Topics["a"][0].CommittedOffset), res.Topics["a"][0].Metadata)
	return res.Topics["a"][0].CommittedOffset
}

func FuzzValidPrefix(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 2, 3, 4, 1, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		fuzzing.Bound(t, len(raw), func() { _, _ = validPrefix(bytes.NewReader(raw)) })
		n, err := validPrefix(bytes.NewReader(raw))
		require.NoError(t, err)
		require.LessOrEqual(t, n, int64(len(raw)))
		again, err := validPrefix(bytes.NewReader(raw[:n]))
		require.NoError(t, err)
		require.Equal(t, n, again, "a valid prefix is valid as a whole")
	})
}
