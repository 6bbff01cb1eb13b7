// Package migrations holds the schema of Batchyard's Postgres database as
// numbered SQL files, which are part of the program, and brings a database to
// the version that the program needs.
//
// A number is never used twice and a file that was released is never changed.
// Each file runs in one transaction: when the process dies in the middle,
// nothing of it has happened. Several processes that migrate at the same time
// do so one after the other; the later ones find nothing to do.
//
// Programs do not migrate by themselves when they start: [Check] tells them
// whether the database fits, in one line that names the remedy.
package migrations
