// Package agent reports one device to Batchyard: every few seconds it checks the device,
// measures the host and POSTs a heartbeat. It runs next to the inference server, on the
// same host, as `batchyard agent`; for described devices, in processes with the API.
//
// What it promises:
//
//   - It sends heartbeats only for a device that has just answered. A device that
//     does not answer becomes silent, and Batchyard gives it no new work.
//   - It never gives up: it retries a device or a server that is away, the server
//     with growing pauses, and logs each change of state once.
//   - It costs the host next to nothing: answers are limited and streamed, every
//     request has a timeout, and it keeps only the figures of the last heartbeat.
//   - When it is stopped, it tells the server that the device leaves, so that its
//     work moves at once. When it is killed, missing heartbeats have the same effect
//     a few seconds later.
//
// Its states; each change is logged:
//
//	          device answers, server accepts heartbeat
//	starting ──────────────────────────────────────▶ beating ◀──────────┐
//	   │                                                │               │
//	   ├── the device does not answer ──▶ device away ──┤ any to any    │ by the outcome
//	   ├── the server does not answer ──▶ server away ──┤               │ of the last try
//	   └── the server rejects it ───────▶ refused ──────┴───────────────┘
//
//	any, when the context ends ──▶ leaving (one last request) ──▶ Run returns
package agent
