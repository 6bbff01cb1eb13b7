// Package workers runs batches on devices.
//
//	batches ──▶ intake ──▶ runner (one a device: slots, queue, breaker) ──▶ engine ──▶ the device
//	                          │                                               │
//	                          │◀── here again, after a backoff ◀── decide ◀───┤
//	                          ▼                                               ▼
//	                 tasks.* (elsewhere, degraded, given back)          results, events
//
// A device's batches are all in one partition, so one worker process owns the
// device at a time, and the breaker that it keeps for it knows every request.
//
// # The way of an attempt
//
//	queued ──▶ slot ──▶ breaker ──▶ request ──▶ success ──▶ result
//	  │                   │           │
//	  │                   │           └─▶ failure ──▶ decide: here again │ elsewhere │ smaller model │ FAILED
//	  │                   └─ open ──▶ given back
//	  └─ cancelled, expired, draining, partition lost
//
// Whose fault a failure was decides what follows: see [Decide]. Retries are
// spaced by exponential backoff with jitter, and a budget keeps them from
// becoming the load.
//
// # When the process dies
//
// A record of batches is done only when each of its tasks has become a result
// or has been written back, on all in-sync replicas. Until then the next owner
// of the partition runs it again: inference may happen twice, the recorder
// takes one result. The credits of what we held are leases, which end.
package workers
