// Package device knows the devices: who they are and how they are, how many
// more tasks each may be given, and which tasks somebody wants to have stopped.
//
// All of it is in Redis and may be forgotten at any moment. Redis emptied means:
// devices are known again with their next heartbeat, credits count anew from
// nothing, cancels that were not seen yet are seen by the result that the API
// wrote. Nothing here is an error because something is not there.
//
// # Registry
//
// One hash, a field a device, JSON as value, so that people can look with
// redis-cli and other programs can write. Times are Redis' own, so that the
// clocks of the processes do not matter.
//
//	       first beat                    no beat for Timeout
//	(none) ─────────▶ fresh ──────────────────────────────▶ silent
//	  ▲                 │  ▲            next beat             │  │
//	  │     leaves      │  └───────────────────────────────────┘  │ no beat for Forget
//	  └─────────────────┴──────────────────────────────────────────┘
//
// # Credits
//
// A credit is the right to have one more task on a device. A device has a pool
// of them for each way of sending work; a pool is named deviceID + "/" + class.
// Credits are taken for a whole round of picks in one atomic step, as leases: a
// lease covers the credits of one pool that one round took.
//
//	       Acquire                      Release of the last credit
//	(free) ───────▶ leased ──┬───────────────────────────────────────▶ (free)
//	                  ▲      │  not renewed for LeaseTTL                  ▲
//	                  │Renew │  (its holder died)                         │
//	                  └──────┴────────────────────────────────────────────┘
//
// Promise: the credits leased of a pool never exceed the limit that the taker
// named, whoever takes, dies, retries or gives back twice.
//
// # What is learned by trying
//
// [Estimator], [Ejector] and [Concurrency] learn how fast a device is, when it is
// to be let alone and how many requests at a time it takes. They have no clock and
// know no Redis: the worker that owns the device tells them the time and how its
// requests end, and a simulation drives the same code. [Rates] shares what they
// have learned, as durations beside Redis' time.
//
// # Cancels and changed priorities
//
// A mark a task, with a time to live, and a message to whoever may hold it.
//
// # Control
//
// What operators said while Batchyard runs: the routers' policy, which goes over
// the file's, and the devices that they drained. Routers hear of a change by the
// registry's channel.
//
//	          Drain(on)                        Drain(off)
//	(as its ───────────▶ drained, known or not ──────────▶ (as its heartbeats say)
//	 heartbeats say)
package device
