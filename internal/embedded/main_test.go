package embedded

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
)

// Tests of what survives a killed process run this test binary again as a child:
// it starts something, prints its progress, and gets killed.
const (
	childEnv = "EMBEDDED_TEST_CHILD"
	dirEnv   = "EMBEDDED_TEST_DIR"
)

func TestMain(m *testing.M) {
	var err error
	switch child := os.Getenv(childEnv); child {
	case "":
		os.Exit(m.Run())
	case "produce":
		err = childProduces(os.Getenv(dirEnv))
	case "stack":
		err = childRunsStack(os.Getenv(dirEnv))
	default:
		err = fmt.Errorf("unknown %s %q", childEnv, child)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// childProduces writes numbered records and prints the last number acknowledged
// so far, until it is killed.
func childProduces(dir string) error {
	ctx := context.Background()
	b, err := StartBroker(ctx, BrokerOptions{Dir: dir})
	if err != nil {
		return err
	}
	if err := createTopic(ctx, b.Addr(), "numbers", nil); err != nil {
		return err
	}
	w := &kafka.Writer{
		Addr: kafka.TCP(b.Addr()), Topic: "numbers", RequiredAcks: kafka.RequireAll,
		BatchTimeout: time.Millisecond, BatchSize: 100,
	}
	for n := 0; ; n += 100 {
		msgs := make([]kafka.Message, 100)
		for i := range msgs {
			msgs[i].Value = fmt.Appendf(nil, "%d", n+i)
		}
		if err := w.WriteMessages(ctx, msgs...); err != nil {
			return err
		}
		if _, err := fmt.Println(n + 99); err != nil {
			return err
		}
	}
}

// childRunsStack starts everything, writes a row and prints the stack's
// directory and the postmaster's process id, then waits to be killed.
func childRunsStack(dir string) error {
	ctx := context.Background()
	s, err := Start(ctx, Options{DataDir: dir})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)"); err != nil {
		return err
	}
	fmt.Println(s.DataDir)
	fmt.Println(postmasterOf(filepath.Join(s.DataDir, postgresDir, dataDir)))
	select {}
}

// startChild runs this binary as a child; lines reads its output.
func startChild(t *testing.T, child, dir string) (cmd *exec.Cmd, lines *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+child, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

// newClient returns a client with its own connections: kafka-go's shared ones may
// lead to an earlier broker on the same address.
func newClient(addr string) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(addr), Timeout: 10 * time.Second, Transport: &kafka.Transport{}}
}

func createTopic(ctx context.Context, addr, topic string, config map[string]string) error {
	c := newClient(addr)
	var entries []kafka.ConfigEntry
	for k, v := range config {
		entries = append(entries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	res, err := c.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: entries,
	}}})
	if err != nil {
		return err
	}
	return res.Errors[topic]
}

// within returns a context that ends a stuck test; it allows for a busy machine.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
