// Package migrations contains the schema of Batchyard's Postgres database as numbered SQL
// files, embedded into the program, and migrates a database to the version that the
// program needs.
//
// A number is never reused, and a released file never changes. Each file runs in one
// transaction: if the process dies in the middle, nothing of it has happened. When several
// processes migrate at the same time, they do so one after the other, and the later ones
// find nothing to do.
//
// Programs do not migrate on their own when they start: [Check] tells whether the database
// fits, in one line with the remedy.
package migrations
