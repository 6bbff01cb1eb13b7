package embedded

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// templateRevision must change whenever the arguments of initdb change.
const templateRevision = "1"

func newPassword() string { return rand.Text() }

// prepare creates the data directory if there is none. initdb takes almost a
// second and copying its result a tenth of that, so initdb runs once per machine,
// user and Postgres version, and the result is kept as a template.
func (p *Postgres) prepare(ctx context.Context, progress func(string)) error {
	data := filepath.Join(p.dir, dataDir)
	if major, err := majorOf(data); err != nil || major != 0 {
		return err
	}
	progress("preparing Postgres")
	// PG_VERSION marks a complete directory, because it is copied last. Without it,
	// the directory is a partial copy left by a killed process.
	if err := os.RemoveAll(data); err != nil {
		return fmt.Errorf("removing the unfinished %s: %w", data, err)
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("creating %s: %w", p.dir, err)
	}
	if err := p.owner.own(p.dir); err != nil {
		return err
	}
	template, err := p.template(ctx)
	if err != nil {
		p.log.Debug("creating a Postgres cluster without a template", "error", err)
		return p.initdb(ctx, p.dir)
	}
	if err := copyTree(template, p.dir, p.owner); err != nil {
		return err
	}
	if p.temporary {
		return nil
	}
	cmd := p.bin.command(p.owner, "initdb", "-D", data, "--sync-only")
	cmd.Dir = p.dir
	if out, err := output(ctx, cmd); err != nil {
		return fmt.Errorf("syncing %s to disk: %w: %s", data, err, out)
	}
	return nil
}

// template returns a directory that holds a new cluster and its password,
// creating it on first use.
func (p *Postgres) template(ctx context.Context) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("creating cache directory %s: %w", cache, err)
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%s", p.bin.version, p.bin.dir, os.Geteuid(), templateRevision))
	dir := filepath.Join(cache, "postgres-template-"+hex.EncodeToString(key[:8]))
	unlock, err := waitForLock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if major, err := majorOf(filepath.Join(dir, dataDir)); err == nil && major != 0 {
		return dir, nil
	}
	// initdb runs as the owner, who may not have access to the cache.
	work, err := newTemporaryHome()
	if err != nil {
		return "", err
	}
	defer func() { _ = work.close() }()
	fresh := filepath.Join(work.path, postgresDir)
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", fmt.Errorf("creating %s: %w", fresh, err)
	}
	if err := p.owner.own(fresh); err != nil {
		return "", err
	}
	if err := p.initdb(ctx, fresh); err != nil {
		return "", err
	}
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("removing the unfinished %s: %w", partial, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("removing %s: %w", dir, err)
	}
	if err := os.Mkdir(partial, 0o700); err != nil {
		return "", fmt.Errorf("creating %s: %w", partial, err)
	}
	if err := copyTree(fresh, partial, owner{}); err != nil {
		return "", err
	}
	if err := os.Rename(partial, dir); err != nil {
		return "", fmt.Errorf("moving the Postgres template into place: %w", err)
	}
	return dir, nil
}

// initdb creates a cluster in dir/data, with a new password in dir/password.
func (p *Postgres) initdb(ctx context.Context, dir string) error {
	password := filepath.Join(dir, passwordFile)
	if err := os.WriteFile(password, []byte(newPassword()+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", password, err)
	}
	if err := p.owner.own(password); err != nil {
		return err
	}
	args := []string{
		"-D", filepath.Join(dir, dataDir),
		"-U", postgresUser,
		"--auth=scram-sha-256",
		"--pwfile=" + password,
		"--encoding=UTF8",
		"--locale=C",
		"--no-instructions",
	}
	if p.temporary {
		args = append(args, "--no-sync")
	}
	cmd := p.bin.command(p.owner, "initdb", args...)
	cmd.Dir = dir
	if out, err := output(ctx, cmd); err != nil {
		return fmt.Errorf("creating a Postgres cluster in %s as user %s: %w: %s", dir, p.owner.name, err, out)
	}
	return nil
}

// copyTree copies the tree below from into to, accessible only to the owner.
// PG_VERSION is copied last: see prepare.
func copyTree(from, to string, who owner) error {
	version := filepath.Join(dataDir, "PG_VERSION")
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || rel == "." || rel == version {
			return err
		}
		target := filepath.Join(to, rel)
		if !entry.IsDir() {
			return copyFile(path, target, who)
		}
		if err := os.MkdirAll(target, 0o700); err != nil {
			return fmt.Errorf("creating %s: %w", target, err)
		}
		return who.own(target)
	})
	if err != nil {
		return err
	}
	return copyFile(filepath.Join(from, version), filepath.Join(to, version), who)
}

func copyFile(from, to string, who owner) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("opening %s: %w", from, err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("creating %s: %w", to, err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copying %s to %s: %w", from, to, err)
	}
	return who.own(to)
}

// waitForLock takes a lock shared between processes. Another process may hold it
// for as long as a download takes, and a blocking flock cannot be cancelled, so
// this polls until ctx ends.
func waitForLock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock %s: %w", path, err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("waiting for another process to release %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}
