// Package fleet simulates a fleet of inference devices. Each device is an
// OpenAI-compatible HTTP server on its own loopback port, with slots, service
// times, a bounded FIFO queue, and faults that can be injected while it runs.
// `batchyard run` and `batchyard dev` use it if no devices are configured; tests
// and benchmarks use it throughout.
//
// What it promises:
//
//   - The protocol is real: HTTP over TCP, request validation, error bodies, and
//     answers (including usage) in the format of the OpenAI API. Batchyard cannot
//     tell a simulated device from a slow real one.
//   - An answer depends only on the request. Every device gives the same answer, so
//     a task that ran twice must have the same result both times.
//   - Slots are enforced: at most Spec.Slots requests run at a time, first come
//     first served, and requests beyond Spec.Queue get 429. A client that leaves
//     frees its slot, or its place in the queue, immediately.
//   - Everything is bounded: body bytes, items of a batched request, vector
//     sizes, waiting requests, remembered task keys.
//   - Fleet.Close leaves no goroutine, connection or port behind.
//
// The states of a device:
//
//	         Start                    Stop
//	(new) ───────────▶ listening ◀──────────────▶ refusing ───────┐
//	                       │           Start                      │ Fleet.Close
//	                       └──────────────────────────────────────┴──▶ closed
//
// Where the system allows it (Linux), a refusing device keeps its port reserved,
// so that no other process can take it before the device starts again.
//
// The path of a request:
//
//	read body ─▶ fault? ─▶ validate ─▶ slot (FIFO) ─▶ service time ─▶ answer
//	               │          │ 4xx       │ 429            │
//	               ▼          ▼           ▼                ▼ client left
//	         fail/hang/reset                        slot is freed, no answer
//
// Nothing survives the process: counters, faults and remembered keys are lost with
// it, as on a device that loses power.
package fleet
