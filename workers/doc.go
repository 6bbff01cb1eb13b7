// Package workers runs batches on devices.
//
//	batches ──▶ intake ──▶ runner (one a device: slots, queue, breaker) ──▶ engine ──▶ the device
//	                          │                                               │
//	                          │◀── here again, after a backoff ◀── decide ◀───┤
//	                          ▼                                               ▼
//	                 tasks.* (elsewhere, degraded, given back)          results, events
//
// A device's batches are all in one partition, so one worker process owns the
// device at a time, and what it keeps of it knows every request: how fast it is
// ([device.Estimator]), how many requests it takes at a time
// ([device.Concurrency]) and whether it is let alone ([device.Ejector], which the
// events call its breaker). The routers are told of all of it through Redis.
//
// # The way of an attempt
//
//	queued ──▶ slot ──▶ breaker ──▶ request ──▶ success ──▶ result
//	  │                   │           │
//	  │                   │           └─▶ failure ──▶ decide: here again │ elsewhere │ smaller model │ FAILED
//	  │                   └─ open ──▶ given back
//	  ├─ the device is ejected, hangs, is silent, draining or gone ──▶ given back
//	  ├─ it has work for long, others have none ──▶ given back, once
//	  └─ cancelled, expired, draining, partition lost
//
// Nothing waits in vain: what has not been started goes back to its topic when
// its device takes no more, and no attempt is counted. Every few seconds workers
// also compare when the devices will be done with what they have; if that is
// uneven, the last of what waits at the busiest goes back too. A task that was
// moved so is not moved again before it ran, wherever the router sends it.
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
// takes one result. The credits of what we held are leases, which end. What was
// learned of a device's speed the next owner reads from Redis; its breaker begins
// closed.
package workers
