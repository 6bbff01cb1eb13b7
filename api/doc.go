// Package api serves Batchyard over HTTP: tasks in, their status and results
// out, heartbeats of devices, health and metrics.
//
// # Promises
//
// A submit that was answered with 202 is durable: all in-sync replicas have its
// tasks. From then on their status is never 404: until Postgres hears of a task,
// the producer remembers it as PENDING; when nobody can tell, the answer is 503.
// A submit that was answered with anything else than 202 or a 4xx may have been
// written; sending it again with the same ids is the same tasks.
//
// Every error is a problem document (RFC 9457) that says what is wrong, where (a
// JSON pointer) and what to do, and holds no more of what was sent than a few
// characters. That goes for unknown paths and methods and for panics, too.
//
// Everything from outside is bounded: headers, bodies, the bytes of all bodies
// together, requests at once, the time of each, how long one may wait.
//
// # Life of a server
//
//	New ──▶ Run: listening ──ready──▶ serving ──ctx ends──▶ draining ──▶ Run returns nil
//
// While draining nothing new is accepted, whoever waits for a task's end is
// answered with its present state, and what runs is finished.
package api
