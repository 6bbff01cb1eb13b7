package services

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Ports hands out ports to listen on. They are below the ephemeral range, so that no
// outgoing connection can take one while its owner is down.
type Ports struct{ Next int }

// Take returns n free ports.
func (p *Ports) Take(n int) ([]int, error) {
	var out []int
	for ; len(out) < n && p.Next < 31000; p.Next++ {
		l, err := net.Listen("tcp", Local(p.Next)) //nolint:noctx // immediate, on loopback
		if err != nil {
			continue
		}
		_ = l.Close() // only checks that the port is free
		out = append(out, p.Next)
	}
	if len(out) < n {
		return nil, errors.New("looking for free ports: none left below 31000")
	}
	return out, nil
}

// Local returns the address of a port on loopback.
func Local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Service is Kafka, Redis or Postgres: a process run by scripts/services. Each has its
// own directory, so that they don't wait for each other's lock.
type Service struct {
	Name  string
	Dir   string
	Env   []string
	Port  int            // used by the test itself
	Lanes map[string]int // ports of the proxies
}

func (s *Service) script(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "..", "..", "..", "scripts", "services"), args...)
	cmd.Env = append(os.Environ(), append([]string{"BATCHYARD_SERVICES_MODE=native", "BATCHYARD_SERVICES_DIR=" + s.Dir}, s.Env...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/services %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Start starts the service and waits until it answers.
func (s *Service) Start(ctx context.Context) error { return s.script(ctx, "start", s.Name) }

// Stop shuts the service down.
func (s *Service) Stop(ctx context.Context) error { return s.script(ctx, "stop", s.Name) }

// Kill ends the service with SIGKILL.
func (s *Service) Kill(ctx context.Context) error { return s.script(ctx, "kill", s.Name) }

// Crash stops Postgres with an immediate shutdown, which writes no checkpoint, so
// that the next start has to recover from the WAL.
func (s *Service) Crash(ctx context.Context) error {
	pid, err := s.pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stopping %s: %w", s.Name, err)
	}
	return s.Stop(ctx) // waits for it to exit
}

// Freeze stops the process for a while.
func (s *Service) Freeze(d time.Duration) error {
	pid, err := s.pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stopping %s: %w", s.Name, err)
	}
	<-time.After(d)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return fmt.Errorf("continuing %s: %w", s.Name, err)
	}
	return nil
}

func (s *Service) pid() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir, s.Name, "pid"))
	if err != nil {
		return 0, fmt.Errorf("reading the process id of %s: %w", s.Name, err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(b) + " 0")[0])
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("reading the process id of %s: invalid content %q", s.Name, b)
	}
	return pid, nil
}

// Disk is a small file system for the data of Postgres, which can be filled up.
type Disk struct {
	dir     string
	Mounted bool
	Why     string // why it is not mounted
}

const diskSize = "640m"

// NewDisk mounts a tmpfs owned by the user that runs Postgres. Without permission to
// mount, faults that fill the disk are skipped, and the log says so.
func NewDisk(dir string) (*Disk, error) {
	d := &Disk{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of Postgres' disk: %w", err)
	}
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		d.Why = "only root on Linux can mount a small file system"
		return d, nil
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+diskSize+",mode=700"); err != nil {
		d.Why = "mounting a small file system: " + err.Error()
		return d, nil //nolint:nilerr // reported when the disk should be filled
	}
	d.Mounted = true
	name := "postgres"
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, fmt.Errorf("looking up the user that runs Postgres: %w", err)
		}
	}
	uid, _ := strconv.Atoi(u.Uid) //nolint:errcheck // always a number on Linux
	gid, _ := strconv.Atoi(u.Gid) //nolint:errcheck // always a number on Linux
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, fmt.Errorf("changing the owner of the disk to %s: %w", u.Username, err)
	}
	return d, nil
}

func (d *Disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// Fill uses up all free space.
func (d *Disk) Fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return fmt.Errorf("filling Postgres' disk: %w", err)
	}
	defer func() { _ = f.Close() }() // only its size matters
	block := make([]byte, 1<<20)
	for len(block) >= 4096 {
		if _, err := f.Write(block); err == nil {
			continue
		} else if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("filling Postgres' disk: %w", err)
		}
		block = block[:len(block)/4]
	}
	return nil
}

// Empty frees what Fill used.
func (d *Disk) Empty() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("emptying Postgres' disk: %w", err)
	}
	return nil
}

// Installed reports whether all services are already installed.
func Installed() bool {
	for _, command := range []string{"java", "redis-server"} {
		if _, err := exec.LookPath(command); err != nil {
			return false
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") //nolint:errcheck // the pattern is valid
	_, err := exec.LookPath("initdb")
	return len(found) > 0 || err == nil
}

// Password is that of the login of tests.
const Password = "batchyard"

// PostgresURL returns the URL of a database.
func PostgresURL(port int, database string) string {
	return fmt.Sprintf("postgres://batchyard:%s@%s/%s?sslmode=disable", Password, Local(port), database)
}

// Admin runs one statement on a connection that can write even in read-only mode, without a timeout.
func Admin(ctx context.Context, url, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("reading the Postgres URL: %w", err)
	}
	cfg.RuntimeParams["default_transaction_read_only"], cfg.RuntimeParams["statement_timeout"] = "off", "0"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the statement has already succeeded or failed
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("running %q: %w", sql, err)
	}
	return nil
}

// MakeDatabase creates the database, on the small disk if there is one.
func MakeDatabase(ctx context.Context, port int, d *Disk) error {
	url := PostgresURL(port, "postgres")
	where := ""
	if d.Mounted {
		if err := Admin(ctx, url, "CREATE TABLESPACE small LOCATION '"+d.dir+"'"); err != nil {
			return err
		}
		where = " TABLESPACE small"
	}
	return Admin(ctx, url, "CREATE DATABASE chaos TEMPLATE template0"+where)
}

// WatchSQL installs triggers that record every change of a task's state and of a
// result.
const WatchSQL = `
CREATE TABLE chaos_changes (
	n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), relation text NOT NULL, op text NOT NULL,
	tenant text NOT NULL, task_id text NOT NULL, generation int NOT NULL, again bool NOT NULL DEFAULT false, before text, after text);
CREATE FUNCTION chaos_task() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, generation, before) VALUES ('tasks', TG_OP, OLD.tenant, OLD.task_id, OLD.generation, OLD.state);
	ELSIF TG_OP = 'INSERT' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, generation, after) VALUES ('tasks', TG_OP, NEW.tenant, NEW.task_id, NEW.generation, NEW.state);
	ELSIF OLD.state <> NEW.state THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, generation, again, before, after)
			VALUES ('tasks', TG_OP, NEW.tenant, NEW.task_id, NEW.generation, NEW.generation > OLD.generation, OLD.state, NEW.state);
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_task AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION chaos_task();
CREATE FUNCTION chaos_result() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, generation, before) VALUES ('results', TG_OP, OLD.tenant, OLD.task_id, OLD.generation, OLD.state);
	ELSE
		INSERT INTO chaos_changes (relation, op, tenant, task_id, generation, after) VALUES ('results', TG_OP, NEW.tenant, NEW.task_id, NEW.generation, NEW.state);
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_result AFTER INSERT OR UPDATE OR DELETE ON results FOR EACH ROW EXECUTE FUNCTION chaos_result();
`
