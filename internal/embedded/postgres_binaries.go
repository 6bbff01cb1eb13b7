package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is the version to download if no Postgres is installed.
const downloadVersion = embeddedpostgres.V17

// binaries is a directory that contains initdb and postgres.
type binaries struct {
	dir     string
	major   int
	version string // the output of postgres --version
}

// findBinaries picks the newest usable Postgres or, for an existing data
// directory, one of the major version that wrote it.
func findBinaries(ctx context.Context, o PostgresOptions, who owner, data string) (binaries, error) {
	want, err := majorOf(data)
	if err != nil {
		return binaries{}, err
	}
	var found []binaries
	for _, dir := range binDirs(o.BinDir) {
		if b, ok := probe(ctx, who, dir); ok && b.major >= minPostgres && (want == 0 || b.major == want) {
			found = append(found, b)
		}
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b binaries) int { return a.major - b.major }), nil
	}
	if o.BinDir != "" {
		return binaries{}, fmt.Errorf("looking for Postgres in %s: no usable initdb and postgres of version %d or later", o.BinDir, minPostgres)
	}
	b, err := download(ctx, loggerOr(o.Logger), o.Progress, who)
	if err != nil {
		return binaries{}, fmt.Errorf("%w; install PostgreSQL %d or later (Debian: apt-get install postgresql; macOS: brew install postgresql) and try again",
			err, max(minPostgres, want))
	}
	if want != 0 && b.major != want {
		return binaries{}, fmt.Errorf("opening %s: it was written by Postgres %d, but only %d is available; install PostgreSQL %d or choose another data directory",
			data, want, b.major, want)
	}
	return b, nil
}

// majorOf returns the major version that wrote the data directory, 0 if there is
// no cluster in it yet.
func majorOf(data string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the version of %s: %w", data, err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("reading the version of %s: %w", data, err)
	}
	return major, nil
}

// binDirs lists the directories to look for initdb and postgres in: only
// configured, if it is set.
func binDirs(configured string) []string {
	if configured != "" {
		return []string{configured}
	}
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target // initdb may be missing from the directory of the link
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/[0-9]*/bin",
	} {
		matches, _ := filepath.Glob(pattern)
		dirs = append(dirs, matches...)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// probe asks postgres in dir for its version, as the user that will run it.
func probe(ctx context.Context, who owner, dir string) (binaries, bool) {
	if info, err := os.Stat(filepath.Join(dir, "initdb")); err != nil || info.IsDir() {
		return binaries{}, false
	}
	b := binaries{dir: dir}
	cmd := b.command(who, "postgres", "--version")
	cmd.Dir = "/"
	out, err := output(ctx, cmd)
	if err != nil {
		return binaries{}, false
	}
	b.version = strings.TrimSpace(out)
	// For example "postgres (PostgreSQL) 15.18 (Debian …)"; also "18beta1".
	words := strings.Fields(b.version)
	if len(words) < 3 {
		return binaries{}, false
	}
	digits := words[2]
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	b.major, err = strconv.Atoi(digits)
	return b, err == nil
}

// output runs a short command and returns its output; it kills the command when
// ctx ends.
func output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), err
}

// limitedBuffer keeps the first 64 KiB written to it and drops the rest.
type limitedBuffer struct{ strings.Builder }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Builder.Write(p[:min(len(p), max(0, 64<<10-b.Len()))])
	return len(p), nil
}

// cacheDir is where downloaded binaries and cluster templates are kept, for all
// data directories. As root it can't be below the home directory: Postgres runs as
// another user, who can't enter that.
func cacheDir() (string, error) {
	if dir := os.Getenv("BATCHYARD_CACHE"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 && runtime.GOOS == "linux" {
		return "/var/cache/batchyard", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("choosing a cache directory: %w; set BATCHYARD_CACHE", err)
	}
	return filepath.Join(dir, "batchyard"), nil
}

// download fetches Postgres once and keeps it. It unpacks into a separate
// directory, which is renamed once its programs run. If the process dies halfway,
// no incomplete Postgres is left where the next start would use it.
func download(ctx context.Context, log *slog.Logger, progress func(string), who owner) (binaries, error) {
	cache, err := cacheDir()
	if err != nil {
		return binaries{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return binaries{}, fmt.Errorf("creating cache directory %s: %w; set BATCHYARD_CACHE to use another directory", cache, err)
	}
	dir := filepath.Join(cache, fmt.Sprintf("postgres-%s-%s-%s", downloadVersion, runtime.GOOS, runtime.GOARCH))
	unlock, err := waitForLock(ctx, dir+".lock")
	if err != nil {
		return binaries{}, err
	}
	defer unlock()
	if b, ok := probe(ctx, who, filepath.Join(dir, "bin")); ok {
		return b, nil
	}
	progress("downloading Postgres")
	log.Info("downloading Postgres (once)", "version", downloadVersion, "to", dir)
	tmp, err := os.MkdirTemp(cache, "download-*")
	if err != nil {
		return binaries{}, fmt.Errorf("creating a directory for Postgres in %s: %w", cache, err)
	}
	fetched := make(chan error, 1)
	go func() { fetched <- fetchInto(tmp, dir, who) }()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		// The library has no way to cancel. Anything it still writes goes to tmp,
		// which no later download uses.
		return binaries{}, fmt.Errorf("downloading Postgres: %w", ctx.Err())
	}
	err = errors.Join(err, os.RemoveAll(tmp))
	if err != nil {
		return binaries{}, err
	}
	b, ok := probe(ctx, who, filepath.Join(dir, "bin"))
	if !ok {
		return binaries{}, fmt.Errorf("downloading Postgres to %s: its programs do not run on this machine", dir)
	}
	return b, nil
}

// fetchInto downloads Postgres, unpacks it in tmp and moves it to dir. The library
// cannot just unpack: it also creates and starts a throwaway server. Only whether
// the programs run matters, not whether that server starts (as root it never does).
func fetchInto(tmp, dir string, who owner) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("letting other users into %s: %w", tmp, err)
	}
	l, err := listen(0)
	if err != nil {
		return err
	}
	port := portOf(l)
	_ = l.Close()
	unpacked := filepath.Join(tmp, "unpacked")
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		Port(uint32(port)).
		CachePath(filepath.Join(tmp, "archive")).
		BinariesPath(unpacked).
		RuntimePath(filepath.Join(tmp, "runtime")).
		DataPath(filepath.Join(tmp, "data")).
		Password(newPassword()).
		Logger(io.Discard).
		StartTimeout(time.Minute))
	err = server.Start()
	if err == nil {
		err = server.Stop()
	}
	if _, ok := probe(context.Background(), who, filepath.Join(unpacked, "bin")); !ok {
		return errors.Join(fmt.Errorf("downloading Postgres %s from repo1.maven.org: its programs do not run on this machine", downloadVersion), err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("replacing %s: %w", dir, err)
	}
	if err := os.Rename(unpacked, dir); err != nil {
		return fmt.Errorf("moving Postgres to %s: %w", dir, err)
	}
	return nil
}
