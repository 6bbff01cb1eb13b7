// Package agent reports one device to Batchyard: every few seconds it asks the
// device how it is, measures the host it runs on, and posts a heartbeat. It runs
// beside the inference server, on the same host, as `batchyard agent`.
//
// What it promises:
//
//   - A heartbeat is only sent for a device that answered just now. A device that
//     does not answer becomes silent, and Batchyard gives it no new work.
//   - It never ends by itself: a server or a device that is away is asked again,
//     the server with growing pauses, and each change of state is logged once.
//   - It costs the host next to nothing: answers are bounded and streamed, every
//     request has a time-out, and it keeps nothing but the figures of the last beat.
//   - When it is told to stop it says that the device leaves, so that its work
//     moves at once and not after missed beats. When it is killed instead, the
//     missed beats do the same, a few seconds later.
//
// Its states, of which each change is one line in the log:
//
//	          device answers, server takes the beat
//	starting ──────────────────────────────────────▶ beating ◀──────────┐
//	   │                                                │               │
//	   ├── the device does not answer ──▶ device away ──┤ any to any    │ by what the
//	   ├── the server does not answer ──▶ server away ──┤               │ last try gave
//	   └── the server refuses the beat ─▶ refused ──────┴───────────────┘
//
//	any, when the context ends ──▶ leaving (one last request) ──▶ Run returns
package agent
