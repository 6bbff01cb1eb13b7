package embedded

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

// Options are the options of Start. The zero value is usable.
type Options struct {
	// DataDir holds the data of the broker and Postgres. Empty means a temporary
	// directory, which Close removes (or, after a crash, the next Start).
	DataDir string
	// Logger may be nil.
	Logger *slog.Logger
	// Progress is called at each step, to inform someone who is waiting; it may be
	// nil. Calls come from several goroutines, one at a time.
	Progress func(step string)
	// Partitions is the partition count of a topic created without one; 0 means 8.
	Partitions int
	// MaxMessageBytes limits a record batch, in topics that don't set
	// max.message.bytes themselves; 0 means 4 MiB.
	MaxMessageBytes int64
	// PostgresBinDir is the directory of initdb and postgres; empty means the newest
	// installed version, or a download if there is none.
	PostgresBinDir string
}

// Stack is a running broker, Redis and Postgres. Each can be stopped and
// restarted separately; Close closes all three.
type Stack struct {
	// Brokers are the host:port addresses to bootstrap a Kafka client from.
	Brokers []string
	// RedisAddr is the host:port of Redis.
	RedisAddr string
	// PostgresURL contains a password: keep it out of logs.
	PostgresURL string
	// DataDir is the data directory, temporary or not.
	DataDir string

	Broker   *Broker
	Redis    *Redis
	Postgres *Postgres

	home  *home
	close func() error
}

// Start starts all three in parallel and returns when all of them answer. ctx
// only limits the start.
func Start(ctx context.Context, o Options) (*Stack, error) {
	log := loggerOr(o.Logger)
	progress := oneAtATime(o.Progress)
	h, err := openHome(ctx, o.DataDir, log)
	if err != nil {
		return nil, err
	}
	s := &Stack{DataDir: h.path, home: h}
	s.close = sync.OnceValue(s.closeAll)

	var (
		wg                               sync.WaitGroup
		brokerErr, redisErr, postgresErr error
	)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The first service that fails to start cancels the others, and only its error
	// is reported.
	run := func(err *error, start func() error) {
		wg.Go(func() {
			if *err = start(); *err != nil {
				cancel(*err)
			}
		})
	}
	run(&postgresErr, func() (err error) {
		s.Postgres, err = startPostgresIn(ctx, h, PostgresOptions{Logger: log, Progress: progress, BinDir: o.PostgresBinDir})
		return err
	})
	run(&brokerErr, func() (err error) {
		progress("starting broker")
		s.Broker, err = startBrokerIn(ctx, h, BrokerOptions{Logger: log, Partitions: o.Partitions, MaxMessageBytes: o.MaxMessageBytes})
		return err
	})
	run(&redisErr, func() (err error) {
		progress("starting Redis")
		s.Redis, err = StartRedis(ctx, RedisOptions{Logger: log})
		return err
	})
	wg.Wait()
	if brokerErr != nil || redisErr != nil || postgresErr != nil {
		return nil, errors.Join(context.Cause(ctx), s.Close())
	}
	s.Brokers = []string{s.Broker.Addr()}
	s.RedisAddr = s.Redis.Addr()
	s.PostgresURL = s.Postgres.URL()
	return s, nil
}

// Close stops everything and removes the directory if it is temporary. It can be
// called more than once and returns the same error each time.
func (s *Stack) Close() error { return s.close() }

func (s *Stack) closeAll() error {
	var (
		wg                     sync.WaitGroup
		brokerErr, postgresErr error
	)
	if s.Broker != nil {
		wg.Go(func() { brokerErr = s.Broker.Close() })
	}
	if s.Postgres != nil {
		wg.Go(func() { postgresErr = s.Postgres.Close() })
	}
	var redisErr error
	if s.Redis != nil {
		redisErr = s.Redis.Close()
	}
	wg.Wait()
	return errors.Join(brokerErr, redisErr, postgresErr, s.home.close())
}

// oneAtATime makes a progress function, which may be nil, safe for concurrent calls.
func oneAtATime(f func(string)) func(string) {
	var mu sync.Mutex
	return func(step string) {
		if f == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		f(step)
	}
}
