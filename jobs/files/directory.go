package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// blobs keeps content under the ids of files.
type blobs interface {
	// create begins content, which appears as a whole with commit.
	create(ctx context.Context, id string) (content, error)
	read(ctx context.Context, id string) (io.ReadCloser, error)
	// remove removes content; it is no error if there is none.
	remove(ctx context.Context, id string) error
	close() error
}

// content is being written.
type content interface {
	io.Writer
	commit() error
	abort()
}

// directory keeps content as files of a directory. A file that is being written has another name, so that a process that
// dies leaves no half of one under the id.
type directory struct{ path string }

func openDirectory(path string) (blobs, error) {
	path, err := filepath.Abs(path)
	if err == nil {
		err = os.MkdirAll(path, 0o700)
	}
	if err != nil {
		return nil, err
	}
	return directory{path}, nil
}

// part is the name of content that is being written.
func (d directory) part(id string) string { return filepath.Join(d.path, id+".part") }

func (d directory) create(_ context.Context, id string) (content, error) {
	f, err := os.OpenFile(d.part(id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &partFile{f, filepath.Join(d.path, id)}, nil
}

func (d directory) read(_ context.Context, id string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(d.path, id))
}

// remove also removes what a process that died was writing.
func (d directory) remove(_ context.Context, id string) error {
	for _, name := range []string{d.part(id), filepath.Join(d.path, id)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (directory) close() error { return nil }

// partFile is content of a directory that is being written.
type partFile struct {
	*os.File

	to string
}

// commit makes sure that the content survives a power failure before it gets its name, and that its name does.
func (p *partFile) commit() error {
	if err := errors.Join(p.Sync(), p.Close()); err != nil {
		return err
	}
	if err := os.Rename(p.Name(), p.to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(p.to))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("syncing the directory: %w", err)
	}
	return nil
}

func (p *partFile) abort() {
	_ = p.Close()           // it is given up
	_ = os.Remove(p.Name()) // Clean removes it otherwise
}
