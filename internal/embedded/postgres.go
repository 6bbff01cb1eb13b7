package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	postgresDir  = "postgres"
	dataDir      = "data"
	passwordFile = "password"
	postgresUser = "batchyard"

	// Database is the name of the database that Start creates.
	Database = "batchyard"

	minPostgres = 14
	stopWait    = 20 * time.Second
)

// PostgresOptions are the options of StartPostgres. The zero value is usable.
type PostgresOptions struct {
	// Dir holds the data; empty means a temporary directory.
	Dir string
	// Logger may be nil.
	Logger *slog.Logger
	// Progress is called before each step that may take long; it may be nil.
	Progress func(step string)
	// BinDir is the directory of initdb and postgres; empty means the newest
	// installed version, or a download if there is none.
	BinDir string
}

// Postgres is a Postgres server in a child process that ends with this one.
type Postgres struct {
	log       *slog.Logger
	bin       binaries
	owner     owner
	dir       string // holds data, password and port
	temporary bool
	home      *home // nil when a Stack owns the directory
	password  string
	port      int

	mu     sync.Mutex
	proc   *process // nil while stopped
	closed bool
}

// StartPostgres starts just a Postgres and returns when it answers.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	h, err := openHome(ctx, o.Dir, loggerOr(o.Logger))
	if err != nil {
		return nil, err
	}
	p, err := startPostgresIn(ctx, h, o)
	if err != nil {
		_ = h.close()
		return nil, err
	}
	p.home = h
	return p, nil
}

// startPostgresIn starts Postgres in a directory that the caller has locked.
func startPostgresIn(ctx context.Context, h *home, o PostgresOptions) (*Postgres, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	p := &Postgres{log: loggerOr(o.Logger), dir: filepath.Join(h.path, postgresDir), temporary: h.temporary}
	var err error
	if p.owner, err = ownerOf(p.dir); err != nil {
		return nil, err
	}
	if err := p.owner.canReach(h.path); err != nil {
		return nil, err
	}
	data := filepath.Join(p.dir, dataDir)
	if p.bin, err = findBinaries(ctx, o, p.owner, data); err != nil {
		return nil, err
	}
	if err := stopOrphan(ctx, data, syscall.SIGINT); err != nil {
		return nil, err
	}
	if err := p.prepare(ctx, o.Progress); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(p.dir, passwordFile))
	if err != nil {
		return nil, fmt.Errorf("reading the password of %s: %w", p.dir, err)
	}
	p.password = strings.TrimSpace(string(raw))
	o.Progress("starting Postgres")
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	if err := p.ensureDatabase(ctx); err != nil {
		return nil, errors.Join(err, p.stop(syscall.SIGINT))
	}
	return p, nil
}

// Addr is the server's host:port, which never changes.
func (p *Postgres) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// URL connects to Database as its owner, a superuser. It contains the password:
// keep it out of logs.
func (p *Postgres) URL() string { return p.urlOf(Database) }

func (p *Postgres) urlOf(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(postgresUser, p.password),
		Host:     p.Addr(),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// start runs the server and waits until it is ready. The first start chooses the
// port and keeps it. Two failures are temporary and retried: another process takes
// the port first, or a killed server still holds its shared memory.
func (p *Postgres) start(ctx context.Context) error {
	portFixed := p.port != 0
	for attempt := 1; ; attempt++ {
		if !portFixed {
			l, err := listen(savedPort(p.dir))
			if attempt > 1 {
				l, err = listen(0)
			}
			if err != nil {
				return err
			}
			p.port = portOf(l)
			_ = l.Close()
		}
		proc, err := runPostgres(ctx, p)
		if err == nil {
			p.proc = proc
			return savePort(p.dir, p.port)
		}
		var early *earlyExitError
		if ctx.Err() != nil || attempt == 20 || !errors.As(err, &early) || !early.temporary() {
			return err
		}
		p.log.Debug("retrying to start Postgres", "part", "postgres", "error", err)
		// There is no event for a port or shared memory becoming free, so poll.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// settings returns the server's command line. Acknowledged commits always survive
// a crash of the server; only a persistent directory pays for surviving a power
// failure as well. Statements and values stay out of the server's log.
func (p *Postgres) settings() []string {
	args := []string{
		"-D", filepath.Join(p.dir, dataDir),
		"-p", strconv.Itoa(p.port),
		"-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=",
		"-c", "max_connections=200",
		"-c", "shared_buffers=256MB",
		"-c", "wal_level=minimal",
		"-c", "max_wal_senders=0",
		"-c", "max_wal_size=2GB",
		"-c", "checkpoint_timeout=15min",
		"-c", "synchronous_commit=on",
		"-c", "jit=off",
		"-c", "random_page_cost=1.1",
		"-c", "lc_messages=C",
		"-c", "log_destination=stderr",
		"-c", "logging_collector=off",
		"-c", "log_error_verbosity=terse",
		"-c", "log_min_error_statement=panic",
		"-c", "log_checkpoints=off",
	}
	if p.temporary {
		args = append(args, "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	return args
}

// ensureDatabase creates the database if it is missing: in a new directory, or in
// one whose earlier start died before it got here.
func (p *Postgres) ensureDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.urlOf("postgres"))
	if err != nil {
		return fmt.Errorf("connecting to the embedded Postgres on %s: %w", p.Addr(), err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", Database).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{Database}.Sanitize())
	}
	if err != nil {
		return fmt.Errorf("creating database %s on the embedded Postgres: %w", Database, err)
	}
	return nil
}

// Stop shuts Postgres down cleanly: it disconnects clients, writes everything to
// disk, and refuses connections until Restart.
func (p *Postgres) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stop(syscall.SIGINT)
}

// Kill ends Postgres abruptly, like a crash. Restart recovers it.
func (p *Postgres) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stop(syscall.SIGKILL)
}

func (p *Postgres) stop(sig syscall.Signal) error {
	if p.proc == nil {
		return nil
	}
	err := p.proc.end(sig, stopWait)
	p.proc = nil
	return err
}

// Restart stops Postgres if it is running and starts it again on the same
// address. It returns when Postgres answers, after any crash recovery.
func (p *Postgres) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("restarting the embedded Postgres in %s: already closed", p.dir)
	}
	if err := p.stop(syscall.SIGINT); err != nil {
		return err
	}
	return p.start(ctx)
}

// Close stops Postgres and removes its directory if that is temporary. Calling it
// again does nothing.
func (p *Postgres) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	sig := syscall.SIGINT
	if p.temporary {
		sig = syscall.SIGQUIT // skip the final checkpoint: the files are about to be deleted
	}
	err := p.stop(sig)
	if p.home != nil {
		err = errors.Join(err, p.home.close())
	}
	return err
}
