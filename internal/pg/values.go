package pg

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"
)

// Epoch is the time from which Postgres counts, in microseconds of Unix time.
var Epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// MinTime and MaxTime bound the times that the tables hold. A time outside is a mistake of its sender.
var (
	MinTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	MaxTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// InRange reports whether the tables hold the time t.
func InRange(t time.Time) bool { return !t.Before(MinTime) && !t.After(MaxTime) }

// NullTime scans a timestamptz that may be NULL into t, in UTC; NULL is the zero time.
func NullTime(t *time.Time) pgtype.TimestamptzScanner { return nullTime{t} }

type nullTime struct{ t *time.Time }

// ScanTimestamptz is called by pgx.
func (n nullTime) ScanTimestamptz(v pgtype.Timestamptz) error {
	*n.t = time.Time{}
	if v.Valid {
		*n.t = v.Time.UTC()
	}
	return nil
}

// storable reports whether Postgres can store s as text: valid UTF-8 without NUL.
func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// Fits reports whether Postgres can store s as text and s has at most n characters.
func Fits(s string, n int) bool {
	return storable(s) && (len(s) <= n || utf8.RuneCountInString(s) <= n)
}

// Truncate returns s as text that Postgres can store, with at most n characters. What Postgres
// cannot store is replaced by U+FFFD.
func Truncate(s string, n int) string {
	if len(s) <= n && storable(s) {
		return s
	}
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	count := 0
	for i := range s {
		if count == n {
			return s[:i]
		}
		count++
	}
	return s
}
