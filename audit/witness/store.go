package witness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/batchyard/batchyard/audit"
)

// store keeps the newest cosigned checkpoint of each log in a file of its own.
type store struct {
	dir  string
	lock *os.File
}

// openStore opens a directory, and creates it if it does not exist. One process at a time may use it: two
// could cosign two histories.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("opening the directory of the witness: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of the witness: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process is the witness of %s: end it, or use another --dir", dir), f.Close())
	}
	return &store{dir, f}, nil
}

func (s *store) close() error { return s.lock.Close() }

func (s *store) path(byHash string) string { return filepath.Join(s.dir, byHash+".checkpoint") }

// load reads the newest checkpoint of a log; the note is nil if there is none. It was written by save
// and is trusted like the directory.
func (s *store) load(byHash string) (head audit.TreeHead, signed []byte, err error) {
	signed, err = os.ReadFile(s.path(byHash))
	if errors.Is(err, os.ErrNotExist) {
		return head, nil, nil
	}
	if err != nil {
		return head, nil, err
	}
	text, ok := audit.NoteText(signed)
	if !ok {
		return head, nil, errors.New("it is not a signed note")
	}
	head, err = audit.ParseTreeHead(text)
	return head, signed, err
}

// save replaces the checkpoint of a log, durably. If the process or the machine dies here, there is the
// old one or the new one.
func (s *store) save(byHash string, signed []byte) error {
	f, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(signed)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(byHash)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
