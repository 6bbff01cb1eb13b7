// Package api is Batchyard's HTTP API: it accepts tasks, returns their state and
// results, takes heartbeats of devices, and serves health and metrics.
//
// # Promises
//
// A submit answered with 202 is durable: every in-sync replica has its tasks. From
// then on their state is never 404: until Postgres has a task, the producer remembers
// it as PENDING; if neither answers, the response is 503. After any response but 202
// and 4xx the tasks may have been accepted; submitting them again with the same ids
// is safe.
//
// Every error is a problem document (RFC 9457) that says what is wrong, where (a JSON
// pointer, or the name of a parameter) and what to do, and repeats no more than a few
// characters of the request. That includes unknown paths, methods and panics.
//
// The OpenAPI document at /openapi.json is true: it comes from the operations as they
// are registered (describe.go), requests are checked against it (guard.go), and tests
// compare it with what is sent.
//
// Everything that clients control is bounded: headers, bodies, the bytes of all bodies
// together, concurrent requests, the time of each, and how long one may wait.
//
// # Life of a server
//
//	New ──▶ Run: listening ──ready──▶ serving ──ctx ends──▶ draining ──▶ Run returns nil
//
// A draining server accepts nothing new, answers those who wait for a task with its
// present state, and finishes the requests that run.
package api
