package test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/harness"
)

// tooLong is the maximum time until an error is reported.
const tooLong = 15 * time.Second

// silent returns an address that accepts connections but never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { _ = c.Close() })
		}
	}()
	return l.Addr().String()
}

// closed returns an address that refuses connections.
func closed(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// oneLine checks that a command exited quickly and reported a single line.
func oneLine(t *testing.T, ran harness.RunResult, code int, says ...string) {
	t.Helper()
	require.Equalf(t, code, ran.Code, "%s", ran.Stderr)
	require.Less(t, ran.Took, tooLong, "%s", ran.Stderr)
	require.Truef(t, strings.HasPrefix(ran.Stderr, "batchyard: "), "%s", ran.Stderr)
	require.Equalf(t, 1, strings.Count(ran.Stderr, "\n"), "one line: %s", ran.Stderr)
	require.Lessf(t, len(ran.Stderr), 600, "%s", ran.Stderr)
	for _, want := range says {
		require.Contains(t, ran.Stderr, want)
	}
}

func TestInvalidConfigurationIsReportedInOneLine(t *testing.T) {
	t.Parallel()
	services := harness.Get(t, harness.Shared)
	in := harness.Install(t, services, nil)
	dsn := func(address, database string) string {
		return "postgres://batchyard:x@" + address + "/" + database + "?sslmode=disable"
	}
	for name, c := range map[string]struct {
		set  map[string]any
		args []string
		code int
		says []string
	}{
		"unknown key":       {map[string]any{"kafka.broker": "x"}, nil, 2, []string{"kafka.broker", "kafka.brokers"}},
		"unknown section":   {map[string]any{"routers.policy": "x"}, nil, 2, []string{"routers", "router"}},
		"wrong type":        {map[string]any{"router.max_pending_tasks": "many"}, nil, 2, []string{"router.max_pending_tasks", "many"}},
		"out of range":      {map[string]any{"router.max_pending_tasks": 1}, nil, 2, []string{"router.max_pending_tasks", "64"}},
		"no such policy":    {map[string]any{"router.policy": "fastest"}, nil, 2, []string{"router.policy", "expected_finish"}},
		"no duration":       {map[string]any{"workers.request_timeout": "soon"}, nil, 2, []string{"workers.request_timeout", "soon"}},
		"Kafka refuses":     {map[string]any{"kafka.brokers": []string{closed(t)}}, nil, 3, []string{"Kafka", "kafka.brokers"}},
		"Kafka is silent":   {map[string]any{"kafka.brokers": []string{silent(t)}}, nil, 3, []string{"Kafka", "kafka.brokers"}},
		"unknown host":      {map[string]any{"kafka.brokers": []string{"no-such-host.invalid:9092"}}, nil, 3, []string{"Kafka", "no-such-host.invalid", "kafka.brokers"}},
		"Redis refuses":     {map[string]any{"redis.addr": closed(t)}, nil, 3, []string{"Redis", "redis.addr"}},
		"Redis is silent":   {map[string]any{"redis.addr": silent(t)}, nil, 3, []string{"Redis", "redis.addr"}},
		"Postgres refuses":  {map[string]any{"postgres.url": dsn(closed(t), "d")}, nil, 3, []string{"Postgres", "postgres.url"}},
		"Postgres silent":   {map[string]any{"postgres.url": dsn(silent(t), "d")}, nil, 3, []string{"Postgres", "postgres.url"}},
		"Postgres password": {map[string]any{"postgres.url": strings.Replace(in.DatabaseURL, "batchyard:", "batchyard:wrong", 1)}, nil, 3, []string{"Postgres", "password"}},
		"unknown database":  {map[string]any{"postgres.url": in.DatabaseURL[:strings.LastIndex(in.DatabaseURL, "/")] + "/nothing_here?sslmode=disable"}, nil, 3, []string{"Postgres", "nothing_here", "does not exist"}},
		"invalid URL":       {map[string]any{"postgres.url": "localhost"}, nil, 2, []string{"postgres.url"}},
		"unknown stage":     {nil, []string{"rooter"}, 2, []string{"rooter", "router"}},
		"missing secret":    {map[string]any{"callbacks.secret_env": "NOTHING_IN_IT"}, []string{"callbacks"}, 2, []string{"NOTHING_IN_IT"}},
		"address taken":     {map[string]any{"ops.listen": silent(t)}, []string{"router"}, 2, []string{"ops.listen"}},
		"API address taken": {map[string]any{"api.listen": silent(t)}, []string{"api"}, 2, []string{"api.listen"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "config.yaml")
			in.WriteConfig(t, path, c.set)
			env := []string{harness.SecretEnv + "=" + harness.Secret}
			ran := harness.Run(t, dir, env, "", append([]string{"serve", "-c", path}, c.args...)...)
			oneLine(t, ran, c.code, c.says...)
			require.NotContains(t, ran.Stderr, ":x@")
			require.NotContains(t, ran.Stderr, "wrongbatchyard", "errors must not contain passwords")
		})
	}
	t.Run("missing file", func(t *testing.T) {
		t.Parallel()
		oneLine(t, harness.Run(t, t.TempDir(), nil, "", "serve", "-c", "nowhere.yaml"), 2, "nowhere.yaml")
	})
	t.Run("invalid YAML", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(path, []byte("kafka: [unfinished"), 0o600))
		oneLine(t, harness.Run(t, t.TempDir(), nil, "", "serve", "-c", path), 2, "config.yaml")
	})
	t.Run("variable", func(t *testing.T) {
		t.Parallel()
		ran := harness.Run(t, t.TempDir(), []string{"BATCHYARD_ROUTER_MAX_PENDING_TASKS=many"}, "", "serve", "-c", in.ConfigPath)
		oneLine(t, ran, 2, "BATCHYARD_ROUTER_MAX_PENDING_TASKS", "many")
	})
	t.Run("two problems are two lines", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "config.yaml")
		in.WriteConfig(t, path, map[string]any{"router.max_pending_tasks": "many", "kafka.broker": "x"})
		ran := harness.Run(t, t.TempDir(), nil, "", "config", "check", "-c", path)
		require.Equal(t, 2, ran.Code)
		require.Equal(t, 2, strings.Count(ran.Stderr, "batchyard: "), "%s", ran.Stderr)
	})
}

func TestMissingTopicsAndSchemaNameTheCommand(t *testing.T) {
	t.Parallel()
	services := harness.Get(t, harness.Shared)
	t.Run("no topics", func(t *testing.T) {
		t.Parallel()
		in := harness.Bare(t, services, nil)
		oneLine(t, in.Run(t, "serve", "router"), 2, "batchyard topics create")
		require.Zero(t, in.Run(t, "topics", "create").Code)
		require.Zero(t, in.Process(t, "serve", "router").Term(t))
	})
	t.Run("one topic missing", func(t *testing.T) {
		t.Parallel()
		in := harness.Install(t, services, nil)
		in.DropTopic(t, stream.TasksParked)
		oneLine(t, in.Run(t, "serve", "router"), 2, in.Topic(stream.TasksParked), "batchyard topics create")
	})
	t.Run("schema", func(t *testing.T) {
		t.Parallel()
		in := harness.Install(t, services, nil)
		down := in.Run(t, "migrate", "down", "--yes")
		require.Zerof(t, down.Code, "%s", down.Stderr)
		oneLine(t, in.Run(t, "serve"), 2, "batchyard migrate up")
		for left := true; left; { // each call rolls back one migration
			ran := in.Run(t, "migrate", "down", "--yes")
			require.Zerof(t, ran.Code, "%s", ran.Stderr)
			left = !strings.Contains(ran.Stdout, "nothing to do")
		}
		oneLine(t, in.Run(t, "serve", "audit"), 2, "no schema", "batchyard migrate up")
		up := in.Run(t, "migrate", "up")
		require.Zerof(t, up.Code, "%s", up.Stderr)
		require.Zero(t, in.Process(t, "serve").Term(t))

		conn, err := pgx.Connect(t.Context(), in.DatabaseURL)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "INSERT INTO batchyard_schema (version_id, is_applied) VALUES (999, true)")
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
		oneLine(t, in.Run(t, "serve", "api"), 2, "999", "update batchyard")
		// Stages that don't need Postgres don't check it.
		require.Zero(t, in.Process(t, "serve", "router", "batcher", "workers").Term(t))
	})
}
