package embedded

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

// Options are the options of Start. The zero value is usable.
type Options struct {
	// DataDir keeps the data of broker and Postgres. Empty stands for a temporary
	// directory that Close removes, or the next Start after a crash.
	DataDir string
	// Logger may be nil.
	Logger *slog.Logger
	// Progress hears what is being done, for people who wait; it may be nil. It is
	// called from several goroutines, one call at a time.
	Progress func(step string)
	// Partitions is how many a topic gets that is created without a number; 0 stands for 8.
	Partitions int
	// MaxMessageBytes bounds a record batch of topics that do not say
	// max.message.bytes themselves; 0 stands for 4 MiB.
	MaxMessageBytes int64
	// PostgresBinDir holds initdb and postgres; empty stands for the newest that
	// is installed and, without any, a download.
	PostgresBinDir string
}

// Stack is a running broker, Redis and Postgres. The parts may be stopped and
// restarted one by one; Close closes them.
type Stack struct {
	// Brokers are the host:port to bootstrap a Kafka client from.
	Brokers []string
	// RedisAddr is host:port.
	RedisAddr string
	// PostgresURL contains a password: keep it out of logs.
	PostgresURL string
	// DataDir is where the data is, also when it is temporary.
	DataDir string

	Broker   *Broker
	Redis    *Redis
	Postgres *Postgres

	home  *home
	close func() error
}

// Start starts all three at once and returns when all of them answer. ctx
// bounds the start only.
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
		wg                            sync.WaitGroup
		brokerErr, redisErr, pgresErr error
	)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The first part that cannot start stops the others from being waited for;
	// only its error says what is wrong.
	run := func(err *error, start func() error) {
		wg.Go(func() {
			if *err = start(); *err != nil {
				cancel(*err)
			}
		})
	}
	run(&pgresErr, func() (err error) {
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
	if brokerErr != nil || redisErr != nil || pgresErr != nil {
		return nil, errors.Join(context.Cause(ctx), s.Close())
	}
	s.Brokers = []string{s.Broker.Addr()}
	s.RedisAddr = s.Redis.Addr()
	s.PostgresURL = s.Postgres.URL()
	return s, nil
}

// Close stops everything and removes the directory when it is temporary. It may
// be called more than once and returns the same error each time.
func (s *Stack) Close() error { return s.close() }

func (s *Stack) closeAll() error {
	var (
		wg                  sync.WaitGroup
		brokerErr, pgresErr error
	)
	if s.Broker != nil {
		wg.Go(func() { brokerErr = s.Broker.Close() })
	}
	if s.Postgres != nil {
		wg.Go(func() { pgresErr = s.Postgres.Close() })
	}
	var redisErr error
	if s.Redis != nil {
		redisErr = s.Redis.Close()
	}
	wg.Wait()
	return errors.Join(brokerErr, redisErr, pgresErr, s.home.close())
}

// oneAtATime makes a progress function safe to call from many goroutines.
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
