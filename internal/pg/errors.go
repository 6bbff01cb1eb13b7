package pg

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// Codes of errors (SQLSTATE).
const (
	LockNotAvailable      = "55P03"
	InsufficientPrivilege = "42501"
	UndefinedTable        = "42P01"
	UndefinedFunction     = "42883"
	readOnlyTransaction   = "25006"
	queryCanceled         = "57014"
	transactionTimeout    = "25P04"
)

// Code returns the SQLSTATE of an error, or "" if Postgres did not send it.
func Code(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// class returns the first two characters of the SQLSTATE, or "".
func class(err error) string {
	if code := Code(err); len(code) == 5 {
		return code[:2]
	}
	return ""
}

// Describe returns the text of an error without the details in which Postgres quotes values.
func Describe(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return err.Error()
}

// IsReadOnly reports whether the server accepts no writes, as a standby does.
func IsReadOnly(err error) bool { return Code(err) == readOnlyTransaction }

// IsRefused reports whether Postgres refuses the content, so that trying again does not help:
// class 22 (data), 23 (constraints), or 54 (too large or too complex).
func IsRefused(err error) bool {
	switch class(err) {
	case "22", "23", "54":
		return true
	}
	return false
}

// IsTransient reports whether the error came from Postgres and says nothing about what was
// written: a lock or a deadlock, no space, a server that shuts down, its operating system.
func IsTransient(err error) bool {
	switch class(err) {
	case "40", "53", "55", "57", "58":
		return true
	}
	return false
}

// IsTimeout reports whether Postgres gave up because something took longer than its settings allow
// (statement_timeout, transaction_timeout), or an administrator cancelled it: less at a time may pass.
func IsTimeout(err error) bool {
	code := Code(err)
	return code == queryCanceled || code == transactionTimeout
}

// IsPermanent reports whether Postgres answered that what was asked is not allowed or does not
// exist, so that asking again does not help.
func IsPermanent(err error) bool {
	switch class(err) {
	case "42", "28", "3D":
		return true
	}
	return false
}
