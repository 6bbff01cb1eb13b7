package chaos

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

// Ports are where everything listens. They lie below those that the system gives
// to connections, so that nobody takes one while its owner is away.
type ports struct{ next int }

func (p *ports) take(n int) ([]int, error) {
	var out []int
	for ; len(out) < n && p.next < 31000; p.next++ {
		l, err := net.Listen("tcp", local(p.next)) //nolint:noctx // a moment, on loopback
		if err != nil {
			continue
		}
		_ = l.Close() // it listened for a moment
		out = append(out, p.next)
	}
	if len(out) < n {
		return nil, errors.New("looking for free ports: there are none below 31000")
	}
	return out, nil
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// service is one of Kafka, Redis and Postgres: a process that scripts/services
// runs from a directory of its own, so that one does not wait for another.
type service struct {
	name  string
	dir   string
	env   []string
	port  int            // where the test itself reaches it
	lanes map[string]int // and where the proxies do
}

func (s *service) script(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "..", "..", "scripts", "services"), args...)
	cmd.Env = append(os.Environ(), append([]string{"BATCHYARD_SERVICES_MODE=native", "BATCHYARD_SERVICES_DIR=" + s.dir}, s.env...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/services %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (s *service) start(ctx context.Context) error { return s.script(ctx, "start", s.name) }
func (s *service) stop(ctx context.Context) error  { return s.script(ctx, "stop", s.name) }
func (s *service) kill(ctx context.Context) error  { return s.script(ctx, "kill", s.name) }

// crash ends Postgres at once, as its immediate shutdown does: without a
// checkpoint, so that it recovers from its log.
func (s *service) crash(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(s.dir, s.name, "pid"))
	if err != nil {
		return fmt.Errorf("reading the process number of %s: %w", s.name, err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(b) + " 0")[0])
	if err != nil || pid <= 1 {
		return fmt.Errorf("reading the process number of %s: %q", s.name, b)
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("ending %s: %w", s.name, err)
	}
	return s.stop(ctx) // waits for its end
}

// disk is a small file system of Postgres' data, which may be filled.
type disk struct {
	dir     string
	mounted bool
	why     string // why there is none
}

const diskSize = "640m"

// newDisk mounts a tmpfs that belongs to who runs Postgres. Where that is not
// permitted, disks are never full, and the run says so.
func newDisk(dir string) (*disk, error) {
	d := &disk{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of Postgres' disk: %w", err)
	}
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		d.why = "only root may mount a small file system"
		return d, nil
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+diskSize+",mode=700"); err != nil {
		d.why = "mounting a small file system: " + err.Error()
		return d, nil //nolint:nilerr // it is told when a disk should be full
	}
	d.mounted = true
	name := "postgres"
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, fmt.Errorf("looking for the user who runs Postgres: %w", err)
		}
	}
	uid, _ := strconv.Atoi(u.Uid) //nolint:errcheck // it is a number on Linux
	gid, _ := strconv.Atoi(u.Gid) //nolint:errcheck // it is a number on Linux
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, fmt.Errorf("giving the disk to %s: %w", u.Username, err)
	}
	return d, nil
}

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves nothing free.
func (d *disk) fill() error {
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

func (d *disk) empty() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("emptying Postgres' disk: %w", err)
	}
	return nil
}

// installed says whether nothing has to be installed to start the services.
func installed() bool {
	for _, command := range []string{"java", "redis-server"} {
		if _, err := exec.LookPath(command); err != nil {
			return false
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") //nolint:errcheck // the pattern is right
	_, err := exec.LookPath("initdb")
	return len(found) > 0 || err == nil
}

const password = "batchyard"

func postgresURL(port int, database string) string {
	return fmt.Sprintf("postgres://batchyard:%s@%s/%s?sslmode=disable", password, local(port), database)
}

// admin runs one statement on a connection that may write although others may not.
func admin(ctx context.Context, url, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("reading the Postgres URL: %w", err)
	}
	cfg.RuntimeParams["default_transaction_read_only"] = "off"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the statement is done, or its error is told
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("running %q: %w", sql, err)
	}
	return nil
}

// database makes the database on the small disk, and what watches it: every
// change of a task's state and of a result is written down beside them.
func makeDatabase(ctx context.Context, port int, d *disk) error {
	url := postgresURL(port, "postgres")
	where := ""
	if d.mounted {
		if err := admin(ctx, url, "CREATE TABLESPACE small LOCATION '"+d.dir+"'"); err != nil {
			return err
		}
		where = " TABLESPACE small"
	}
	return admin(ctx, url, "CREATE DATABASE chaos TEMPLATE template0"+where)
}

const watchSQL = `
CREATE TABLE chaos_changes (
	n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), relation text NOT NULL, op text NOT NULL,
	tenant text NOT NULL, task_id text NOT NULL, before text, after text);
CREATE FUNCTION chaos_task() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, before) VALUES ('tasks', TG_OP, OLD.tenant, OLD.task_id, OLD.state);
	ELSIF TG_OP = 'INSERT' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, after) VALUES ('tasks', TG_OP, NEW.tenant, NEW.task_id, NEW.state);
	ELSIF OLD.state <> NEW.state THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, before, after) VALUES ('tasks', TG_OP, NEW.tenant, NEW.task_id, OLD.state, NEW.state);
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_task AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION chaos_task();
CREATE FUNCTION chaos_result() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO chaos_changes (relation, op, tenant, task_id, before) VALUES ('results', TG_OP, OLD.tenant, OLD.task_id, OLD.state);
	ELSE
		INSERT INTO chaos_changes (relation, op, tenant, task_id, after) VALUES ('results', TG_OP, NEW.tenant, NEW.task_id, NEW.state);
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_result AFTER INSERT OR UPDATE OR DELETE ON results FOR EACH ROW EXECUTE FUNCTION chaos_result();
`
