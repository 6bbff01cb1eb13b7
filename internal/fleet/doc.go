// Package fleet simulates a fleet of inference devices. Each device is an
// OpenAI-compatible HTTP server on a loopback port of its own, with slots,
// service times, a bounded FIFO queue and faults that can be set while it runs.
// `batchyard run` and `batchyard dev` use it when no device is named; tests and
// benchmarks use it everywhere.
//
// What it promises:
//
//   - The protocol is real: HTTP over TCP, request validation, error bodies and
//     answers shaped like those of the OpenAI API, usage included. Nothing in
//     Batchyard can tell a simulated device from a slow real one.
//   - Answers are a function of the request alone: any device gives the same
//     content, so a task that ran twice must have the same answer.
//   - Slots are real: never more requests worked on than Spec.Slots, first come
//     first served, and 429 past Spec.Queue. A client that goes frees its slot
//     (or its place in the queue) at once.
//   - Everything is bounded: body bytes, items of a merged request, vector
//     sizes, waiting requests, remembered task keys.
//   - After Fleet.Close no goroutine, connection or port is left.
//
// The life of a device:
//
//	         Start                    Stop
//	(new) ───────────▶ listening ◀──────────────▶ refusing ───────┐
//	                       │           Start                      │ Fleet.Close
//	                       └──────────────────────────────────────┴──▶ closed
//
// A refusing device keeps its port reserved where the system allows it (Linux),
// so that nobody else gets the port before the device comes back on it.
//
// The way of one request:
//
//	read body ─▶ fault? ─▶ validate ─▶ slot (FIFO) ─▶ service time ─▶ answer
//	               │          │ 4xx       │ 429            │
//	               ▼          ▼           ▼                ▼ client gone
//	         fail/hang/reset                        slot is freed, no answer
//
// Nothing here survives the process: counts, faults and remembered keys are gone
// with it, as they would be with a device that lost its power.
package fleet
