// Package callbacks POSTs results to the URLs that users gave with their tasks.
//
// # Guarantees
//
//   - At least once, with the same webhook-id and the same body every time. A delivery is over
//     when the endpoint answers 2xx, and is recorded only then. If the process dies in between,
//     another one delivers again.
//   - Signed according to Standard Webhooks, with every configured secret, so that secrets can
//     be rotated.
//   - No request reaches an internal address: addresses are checked at every dial, after DNS;
//     redirects are not followed; proxies from the environment are not used.
//   - No endpoint and no tenant delays another: deliveries are limited in total, per host and per tenant,
//     and hosts that time out get fewer; see slots.
//
// # States of a callback
//
//	         (the recorder stores a result with a callback)
//	                             │
//	                             ▼
//	┌────────── wait ─────────  DUE ◀──────────── the lease expired: its holder died
//	│                            │                          │
//	│                     claimed: next_at = end of the lease
//	│                            │                          │
//	│                            ▼                          │
//	│                        delivering ────────────────────┘
//	│                            │
//	├── no answer, not 2xx ──────┼── 2xx ──▶ DELIVERED
//	│                            │
//	                             └── 410, or the last attempt failed ──▶ GIVEN_UP
//
// # Races
//
// Rows are claimed with FOR UPDATE SKIP LOCKED, so any number of processes share the work. The
// outcome is written only if the row still belongs to the claim, so a process that was paused for
// longer than its lease cannot overwrite what another has recorded. Nothing polls: a claim waits
// for a notification, for the time of the next callback, or for a free slot.
package callbacks
