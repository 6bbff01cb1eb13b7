// Package migrations contains the schema of Batchyard's Postgres database as numbered SQL
// files, embedded into the program, and migrates a database to the version that the
// program needs.
//
// A number is never reused, and a file that was released never changes. Each
// file runs in one transaction: if the process dies half way, the database is
// as it was before. Several processes that migrate at the same time take turns;
// the later ones find nothing to do.
//
// Programs keep running during a migration, so a file that changes existing
// tables must respect the order in which others lock them. A recorder locks
// results before tasks, and a query for a task locks tasks before results: a
// file that takes a lock on both can deadlock with either. Change one existing
// table per file.
//
// Programs do not migrate when they start: [Check] compares the version of the
// database with that of the program, and its error says what to run.
package migrations
