// Package workers runs batches on devices and writes their results.
//
//	batches ──▶ intake ──▶ runner (one per device: slots, queue, breaker) ──▶ engine ──▶ the device
//	                          │                                               │
//	                          │◀── retry here, after a backoff ◀── decide ◀───┤
//	                          ▼                                               ▼
//	                 tasks.* (retry elsewhere, degraded, given back)      results, events
//
// All batches of a device are in one partition, so one worker process owns the device at a time
// and sees every request to it. From these requests it learns how fast the device is
// ([device.Estimator]), how many requests it takes at a time ([device.Concurrency]), and whether its
// circuit breaker is open ([device.Ejector]). It reports all three to the routers through Redis.
//
// # States of a task here
//
//	queued ──▶ slot ──▶ breaker ──▶ request ──▶ success ──▶ result
//	  │                   │           │
//	  │                   │           └─▶ failure ──▶ decide: retry here │ elsewhere │ smaller model │ FAILED
//	  │                   └─ open ──▶ given back
//	  ├─ the breaker is open, or the device is silent, draining or gone ──▶ given back
//	  ├─ the device will be busy for long, others will not ──▶ given back, once
//	  └─ cancelled, expired, worker draining, partition lost
//
// A task never waits for a device that cannot run it: when the device takes no more work, queued
// tasks go back to their topic, without counting as an attempt. Every few seconds workers also
// compare when the devices will be done with their work. If that is uneven, the last tasks in the
// queue of the busiest device go back too. A task that was moved in this way is not moved again
// before it has run, wherever the router sends it.
//
// What follows a failure depends on who is to blame: see [Decide]. Retries are spaced by
// exponential backoff with jitter, and a budget keeps them from becoming the load.
//
// # When the process dies
//
// A record of batches is done only when each of its tasks has become a result or was written
// back, on all in-sync replicas. Until then the partition's next owner runs the tasks again:
// inference may happen twice, and the recorder keeps one result. Credits are leases, so those of
// the dead process expire. The next owner reads the learned rates from Redis; its breakers start
// closed.
//
// # Races
//
// A piece of work ends once: [sync/atomic] flags decide which of a result, a cancel, a drain and a
// lost partition comes first. Cancels are checked before a request starts and stop one that runs;
// when a cancel comes too late, the recorder keeps the first result. A runner
// is retired under the lock that intake holds while it submits, so no batch goes to a retired one.
package workers
