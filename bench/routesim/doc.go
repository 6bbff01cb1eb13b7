// Package routesim is a discrete-event simulation of a fleet in virtual time. It
// runs the real router decisions ([decide.Decider]), the real rule of retries
// ([workers.Decide]) and, in virtual time, what the workers learn of devices;
// only the log, Redis and the devices are models.
//
// # What is modelled
//
//	stream of tasks ──▶ a router's log ──Add──▶ Core ──Acquire──▶ credits
//	     (virtual Kafka: tasks beyond              │                   ▲
//	      a full window stay here)                 │ Assigned          │ returned when the
//	                                               ▼ (latency)         │ request ends
//	 virtual Redis ◀──heartbeats, rates──  device: FIFO queue ──▶ slots
//	    │      what the routers see                    │ a request takes work × the
//	    └──Fleet, every Refresh──▶ Core                │ device's service time
//	                                                   ▼
//	                 success, or workers.Decide: retry here, or back to the log
//
// The dispatch latency is the time from a decision to the start of the request on
// the device (two logs and the workers). A credit is returned to Redis when its
// request ends; the routers notice the room a quarter of the dispatch latency later
// (a Redis message and a query). A requeued task is read again half the dispatch
// latency later (one log instead of two). The response time of a task runs from its
// arrival in the log to the end of its request on the device.
//
// Each task goes to a random router. Every router has its own Decider, and all of them
// share the credits. When room is announced, a random router hears of it first.
//
// Not modelled: varying dispatch latency, batched requests, 429s, devices that stop
// sending heartbeats, and workers rebalancing the queues of devices, which helps
// early-binding policies.
//
// # Who knows what
//
// A Core only sees what the virtual Redis holds at that time: heartbeats (one per
// device every 5 s, at different phases), the rates and health that the workers
// last reported, and the credits in use. Only the device knows the work of a task,
// when the task ends.
//
// # What every run checks
//
//   - Conservation: every task ends, exactly once.
//   - Causality: time moves forward, and no request starts before the dispatch
//     latency has passed.
//   - Slots: no device runs more requests than it has slots.
//   - Credits: they stay within the limit, and every assignment holds one.
//   - Work conservation, if the policy promises it.
//   - Knowledge: nothing is used before it could be known.
//
// A run that violates any of these is an error, and its figures are not reported.
//
// A run depends only on its setup and seed. The same setup gives the same
// decisions, and all policies get the same tasks at the same times.
package routesim
