package live

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
)

// cleanWithin limits each step of cleaning up.
const cleanWithin = 30 * time.Second

// partitions is the partition count of the topics on an embedded broker.
const partitions = 6

// site is the services shared by all turns.
type site struct {
	o     *Options
	in    Services
	env   []string // for the processes
	stack *embedded.Stack
	dir   string
}

func openSite(ctx context.Context, o *Options) (_ *site, err error) {
	s := &site{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if o.Services != nil {
		s.in, s.env = *o.Services, os.Environ()
		return s, nil
	}
	if s.dir, err = os.MkdirTemp("", "batchyard-bench-*"); err != nil {
		return nil, fmt.Errorf("creating a directory for the measurement: %w", err)
	}
	// Measure the defaults: ignore the user's configuration file and variables.
	s.in.ConfigPath = filepath.Join(s.dir, "config.yaml")
	if err := os.WriteFile(s.in.ConfigPath, nil, 0o600); err != nil {
		return nil, fmt.Errorf("writing a configuration for the measurement: %w", err)
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BATCHYARD_") && !strings.HasPrefix(e, "PG") {
			s.env = append(s.env, e)
		}
	}
	if s.stack, err = embedded.Start(ctx, embedded.Options{Logger: o.Logger, Progress: o.Progress}); err != nil {
		return nil, fmt.Errorf("starting the embedded services: %w", err)
	}
	s.in.Kafka = stream.Config{Brokers: s.stack.Brokers, Partitions: partitions, Replication: 1}
	s.in.Redis = store.RedisConfig{Addr: s.stack.RedisAddr}
	s.in.PostgresURL = s.stack.PostgresURL
	s.env = append(s.env,
		"BATCHYARD_KAFKA_BROKERS="+strings.Join(s.stack.Brokers, ","), "BATCHYARD_KAFKA_PARTITIONS="+strconv.Itoa(partitions),
		"BATCHYARD_KAFKA_REPLICATION=1", "BATCHYARD_REDIS_ADDR="+s.stack.RedisAddr,
		"BATCHYARD_CALLBACKS_UNSIGNED=true")
	return s, nil
}

func (s *site) close() error {
	var err error
	if s.stack != nil {
		err = s.stack.Close()
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// place is what one turn has to itself: topics, keys and a database.
type place struct {
	s        *site
	prefix   string
	database string // URL
	log      *stream.Client
	redis    *store.Redis
	undo     []func(context.Context) error
}

// place creates a place. If that fails, it removes what it has created.
func (s *site) place(ctx context.Context) (_ *place, err error) {
	name := "batchyard-bench-" + strings.ToLower(rand.Text()[:10])
	p := &place{s: s, prefix: name + "."}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if err := p.makeDatabase(ctx, name); err != nil {
		return nil, err
	}
	kafka := s.in.Kafka
	kafka.TopicPrefix = p.prefix
	if p.log, err = stream.Open(ctx, kafka, s.o.Logger, nil); err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func(context.Context) error { return p.log.Close() })
	p.undo = append(p.undo, p.log.DeleteTopics)
	if _, err := p.log.CreateTopics(ctx); err != nil {
		return nil, err
	}
	if p.redis, err = store.OpenRedis(ctx, s.in.Redis, s.o.Logger, nil); err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func(context.Context) error { return p.redis.Close() })
	p.undo = append(p.undo, p.deleteKeys)
	return p, nil
}

// close removes everything the turn created, in reverse order.
func (p *place) close() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeout(context.Background(), cleanWithin) // the turn's context may have ended
		errs = append(errs, p.undo[i](ctx))
		cancel()
	}
	p.undo = nil
	return errors.Join(errs...)
}

func (p *place) makeDatabase(ctx context.Context, name string) error {
	admin := p.s.in.PostgresURL
	u, err := url.Parse(admin)
	if err != nil { // the library's error may hold the URL with its password
		return errors.New("postgres.url: invalid URL: use one such as postgres://user@host:5432/database")
	}
	quoted := pgx.Identifier{name}.Sanitize()
	if err := execute(ctx, admin, "CREATE DATABASE "+quoted+" TEMPLATE template0"); err != nil {
		return fmt.Errorf("creating a database for a turn: %w; the user in postgres.url must be allowed to create databases", err)
	}
	p.undo = append(p.undo, func(ctx context.Context) error {
		if err := execute(ctx, admin, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("removing database %s: %w", name, err)
		}
		return nil
	})
	u.Path = "/" + name
	p.database = u.String()
	if err := migrations.Up(ctx, p.database); err != nil {
		return fmt.Errorf("preparing database %s: %w", name, err)
	}
	return nil
}

func execute(ctx context.Context, at, statement string) error {
	conn, err := pgx.Connect(ctx, at)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the statement has already succeeded or failed
	_, err = conn.Exec(ctx, statement)
	return err
}

// deleteKeys deletes the keys of the turn in Redis.
func (p *place) deleteKeys(ctx context.Context) error {
	drop := func(ctx context.Context, c redis.Cmdable) error {
		keys := c.Scan(ctx, 0, p.prefix+"*", 1000).Iterator()
		for keys.Next(ctx) {
			if err := c.Unlink(ctx, keys.Val()).Err(); err != nil {
				return err
			}
		}
		return keys.Err()
	}
	var err error
	if c, ok := p.redis.UniversalClient.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error { return drop(ctx, m) })
	} else {
		err = drop(ctx, p.redis)
	}
	if err != nil {
		return fmt.Errorf("removing the keys %s*: %w", p.prefix, err)
	}
	return nil
}

// environment returns the environment of a turn's process.
func (p *place) environment(policy Policy) []string {
	env := append([]string(nil), p.s.env...)
	env = append(env,
		"BATCHYARD_KAFKA_TOPIC_PREFIX="+p.prefix, "BATCHYARD_REDIS_PREFIX="+p.prefix, "BATCHYARD_POSTGRES_URL="+p.database,
		"BATCHYARD_API_LISTEN=127.0.0.1:0", "BATCHYARD_LOG_FORMAT=text", "BATCHYARD_LOG_LEVEL=info", "NO_COLOR=1",
		"BATCHYARD_ROUTER_POLICY="+policy.Name, "BATCHYARD_ROUTER_BINDING=auto")
	if !policy.Late {
		// With fewer than a hundred devices, drain times never spread by ten times their
		// mean, so workers never rebalance and the policy runs as published.
		env = append(env, "BATCHYARD_WORKERS_REBALANCE_SPREAD=10")
	}
	return env
}
