// Package routesim is a discrete-event simulation of a fleet in virtual time. It
// runs the real router decisions ([decide.Decider]), the real rule of retries
// ([workers.Decide]) and, in virtual time, what the workers learn of devices;
// only the log, Redis and the devices are models.
//
// # What is modelled
//
//	stream of tasks ──▶ a router's log ──Add──▶ Core ──Acquire──▶ account of credits
//	     (virtual Kafka: what a full               │                   ▲
//	      window leaves outside)                   │ Assigned          │ given back at the
//	                                               ▼ one hop later     │ end of the request
//	 virtual Redis ◀──heartbeats, rates──  device: FIFO queue ──▶ slots
//	    │      what the routers see                    │ a request takes work × the
//	    └──Fleet, every Refresh──▶ Core                │ device's time for a task
//	                                                   ▼
//	                       success, or workers.Decide: again here, or back to the log
//
// A hop is the one way from a decision to the start of its request at the device
// (two logs and the workers). A credit is given back in Redis the moment its
// request ends; that there is room reaches the routers a quarter of a hop later
// (one message in Redis and one question). A task that goes back to its topic is
// read again half a hop later (one log instead of two). The response of a task is
// the time from its arrival in the log to the end of its request at the device.
//
// Tasks are dealt to the routers at random, one by one; every router has a
// Decider of its own, and all share the account. Within a moment of virtual time nobody
// is always first: who hears of room first is drawn.
//
// Not modelled: hops of different lengths, merged requests, 429s, devices that fall
// silent, and the workers' evening out of what waits at devices, which helps
// policies that bind early.
//
// # What is known to whom
//
// A Core is given what the virtual Redis holds at that time and nothing else:
// heartbeats when they were sent (every 5 s a device, at a phase of its own),
// learned rates and healths when the workers reported them, credits in use. The
// work of a task is known to the device alone, when it ends it.
//
// # What is checked in every run
//
// Conservation: a task ends exactly once, and all do. Causality: time goes
// forward, nothing starts before one hop has passed. No device runs more than its
// slots. Credits never exceed the limit that was named, and each assignment holds
// one. Work conservation, where the policy promises it. Nothing is told before it
// was known. A run that breaks one of them is an error, not a figure.
//
// A run is a function of its setup and seed alone: the same setup gives the same
// decisions, and all policies are given the same tasks at the same times.
package routesim
