// Package pg is how Batchyard talks to Postgres where the driver does not reach: rows in the
// binary formats of COPY and of arrays, notifications on a connection that reconnects by itself,
// what an error means, and what text and times the tables hold. It knows nothing of tasks or stages.
package pg
