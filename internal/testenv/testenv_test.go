package testenv_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func exec(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

func TestDatabasesAreSeparateAndDropped(t *testing.T) {
	t.Parallel()
	env := testenv.Get(t)
	var url string
	t.Run("owner", func(t *testing.T) {
		url = env.Database(t)
		other := env.Database(t)
		require.NotEqual(t, url, other)
		require.NoError(t, exec(t.Context(), url, "CREATE TABLE mine (n int)"))
		require.Error(t, exec(t.Context(), other, "SELECT * FROM mine"))
	})
	require.ErrorContains(t, exec(t.Context(), url, "SELECT 1"), "does not exist")
}

func TestTemplateIsPreparedOnce(t *testing.T) {
	t.Parallel()
	env := testenv.Get(t)
	prepared := 0
	prepare := func(ctx context.Context, url string) error {
		prepared++
		return exec(ctx, url, "CREATE TABLE made (n int)")
	}
	for range 2 {
		url := env.DatabaseFrom(t, "a schema", prepare)
		require.NoError(t, exec(t.Context(), url, "INSERT INTO made VALUES (1)"))
	}
	require.Equal(t, 1, prepared)
}

func TestServicesAnswer(t *testing.T) {
	t.Parallel()
	env := testenv.Get(t)
	prefix := env.Prefix(t)
	require.NotEqual(t, prefix, env.Prefix(t))

	r := env.Redis(t)
	require.NoError(t, r.Set(t.Context(), prefix+"k", "v", 0).Err())
	require.NoError(t, r.Del(t.Context(), prefix+"k").Err())

	client := &kafka.Client{Addr: kafka.TCP(strings.Join(env.Brokers, ",")), Transport: &kafka.Transport{}}
	res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{
		{Topic: prefix + "topic", NumPartitions: 1, ReplicationFactor: 1},
	}})
	require.NoError(t, err)
	require.NoError(t, res.Errors[prefix+"topic"])
}
