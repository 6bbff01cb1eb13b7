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

// downloadVersion is what is downloaded when nothing is installed.
const downloadVersion = embeddedpostgres.V17

// binaries is a directory with initdb and postgres in it.
type binaries struct {
	dir     string
	major   int
	version string // as postgres --version prints it
}

// findBinaries chooses the newest usable Postgres; for data that exists, the
// newest of the version that wrote it.
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
		return binaries{}, fmt.Errorf("looking for Postgres in %s: no usable initdb and postgres of version %d or newer there", o.BinDir, minPostgres)
	}
	b, err := download(ctx, loggerOr(o.Logger), o.Progress, who)
	if err != nil {
		return binaries{}, fmt.Errorf("%w; install PostgreSQL %d or newer (Debian: apt-get install postgresql; macOS: brew install postgresql) and start again",
			err, max(minPostgres, want))
	}
	if want != 0 && b.major != want {
		return binaries{}, fmt.Errorf("opening %s: Postgres %d wrote it and only %d is here; install PostgreSQL %d or choose another data directory",
			data, want, b.major, want)
	}
	return b, nil
}

// majorOf is the version that wrote the data directory, 0 for a new one.
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

// binDirs lists where initdb and postgres may be.
func binDirs(only string) []string {
	if only != "" {
		return []string{only}
	}
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target // the link's directory need not have initdb
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
		more, _ := filepath.Glob(pattern)
		dirs = append(dirs, more...)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// probe asks the programs in dir for their version, as the user who will run them.
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
	// postgres (PostgreSQL) 15.18 (Debian …), also 18beta1
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

// output runs a short command, killing it when ctx ends.
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

// limitedBuffer keeps the first 64 KiB of what is written to it.
type limitedBuffer struct{ strings.Builder }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Builder.Write(p[:min(len(p), max(0, 64<<10-b.Len()))])
	return len(p), nil
}

// cacheDir is where binaries and the template are kept, for every data directory.
// What another user runs cannot be in root's home directory.
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

// download fetches Postgres once and keeps it. It is unpacked beside its place
// and renamed into it when it works: a process that dies half-way leaves no
// half of a Postgres in use.
func download(ctx context.Context, log *slog.Logger, progress func(string), who owner) (binaries, error) {
	cache, err := cacheDir()
	if err != nil {
		return binaries{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return binaries{}, fmt.Errorf("making cache directory %s: %w; set BATCHYARD_CACHE to another one", cache, err)
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
	log.Info("downloading Postgres, once", "version", downloadVersion, "to", dir)
	tmp, err := os.MkdirTemp(cache, "download-*")
	if err != nil {
		return binaries{}, fmt.Errorf("making a directory for Postgres in %s: %w", cache, err)
	}
	fetched := make(chan error, 1)
	go func() { fetched <- fetchInto(tmp, dir, who) }()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		// The library cannot be told to stop; what it still writes goes to tmp,
		// which the next download does not look at.
		return binaries{}, fmt.Errorf("downloading Postgres: %w", ctx.Err())
	}
	err = errors.Join(err, os.RemoveAll(tmp))
	if err != nil {
		return binaries{}, err
	}
	b, ok := probe(ctx, who, filepath.Join(dir, "bin"))
	if !ok {
		return binaries{}, fmt.Errorf("downloading Postgres to %s: its programs do not run here", dir)
	}
	return b, nil
}

// fetchInto downloads and unpacks through tmp to dir. The library has no way to
// only unpack: it also makes and starts a throw-away server. Whether that works
// does not matter (as root it never does); whether the programs run does.
func fetchInto(tmp, dir string, who owner) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("opening %s to other users: %w", tmp, err)
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
		return errors.Join(fmt.Errorf("downloading Postgres %s from repo1.maven.org: its programs do not run here", downloadVersion), err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("replacing %s: %w", dir, err)
	}
	if err := os.Rename(unpacked, dir); err != nil {
		return fmt.Errorf("moving Postgres to %s: %w", dir, err)
	}
	return nil
}
