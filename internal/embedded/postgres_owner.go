package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the user that Postgres runs as. That is the current user, except for
// root: Postgres refuses to run as root.
type owner struct {
	uid, gid uint32
	name     string
	other    bool // differs from the user of this process
}

// ownerOf chooses the user for a Postgres directory, which may not exist yet.
func ownerOf(dir string) (owner, error) {
	if os.Geteuid() != 0 {
		return owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), name: "this user"}, nil
	}
	// Existing data belongs to the user that ran Postgres before. A new directory
	// gets the owner of its parent.
	for _, path := range []string{filepath.Join(dir, dataDir), dir, filepath.Dir(dir)} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return owner{}, fmt.Errorf("reading the owner of %s: %w", path, err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return owner{uid: st.Uid, gid: st.Gid, name: nameOf(st.Uid), other: true}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return owner{uid: uint32(uid), gid: uint32(gid), name: name, other: true}, nil
		}
	}
	return owner{}, errors.New("choosing a user for Postgres, which refuses to run as root: neither postgres nor nobody exists; run Batchyard as an ordinary user")
}

func nameOf(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "with id " + id
}

// own makes the owner own path.
func (o owner) own(path string) error {
	if !o.other {
		return nil
	}
	if err := os.Lchown(path, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("changing the owner of %s to user %s: %w", path, o.name, err)
	}
	return nil
}

// canReach returns an error naming the first directory on the way up from path
// that the owner may not enter, or nil.
func (o owner) canReach(path string) error {
	if !o.other {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("reading the permissions of %s: %w", dir, err)
		}
		if !o.mayEnter(info) {
			return fmt.Errorf("running Postgres as user %s (it refuses to run as root) in %s: that user may not enter %s (mode %o); "+
				"use a data directory that every user can reach, such as /var/lib/batchyard, or run Batchyard as an ordinary user",
				o.name, path, dir, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (o owner) mayEnter(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	switch mode := info.Mode().Perm(); {
	case st.Uid == o.uid:
		return mode&0o100 != 0
	case st.Gid == o.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}
