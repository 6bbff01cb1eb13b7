// Package callbacks posts results to the users' endpoints.
//
// # What is promised
//
//   - At least once, with the same webhook-id and the same body every time. A
//     delivery is over when the endpoint answers 2xx; only then is it written
//     down. Whoever dies in between lets another one deliver again.
//   - Signed by the Standard Webhooks specification, with every secret that is
//     configured, so that secrets can be rotated.
//   - Nothing inside is reached: addresses are checked at every dial, after DNS;
//     redirects are not followed; proxies of the environment are not used.
//   - One endpoint that is slow or away holds up no other: deliveries are bounded
//     in all and for each host.
//
// # The life of a callback
//
//	         (the audit stage takes a result with a callback)
//	                             │
//	                             ▼
//	┌────────── wait ─────────  DUE ◀──────────── the lease ran out: its holder died
//	│                            │                          │
//	│                     claimed: next_at = end of the lease
//	│                            │                          │
//	│                            ▼                          │
//	│                        delivering ────────────────────┘
//	│                            │
//	├── no answer, not 2xx ──────┼── 2xx ──▶ DELIVERED
//	│                            │
//	                             └── 410, or the last try failed ──▶ GIVEN_UP
//
// Rows are claimed with FOR UPDATE SKIP LOCKED, so any number of processes share
// the work. They wait for the notification that callbacks are due, for the time
// of the next one, and for a free slot; nobody polls.
package callbacks
