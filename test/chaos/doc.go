// Package chaos runs every stage as two processes of the real program, on a
// Kafka, a Redis and a Postgres of its own behind toxiproxy, breaks all of it at
// random while tasks are submitted, heals it, and then checks like a model
// checker that each promise was kept.
//
//	make chaos CHAOS_SECONDS=60 CHAOS_SEED=7
//
// The seed decides the plan, and the plan is printed: what is broken, when, for
// how long. It does not decide how the machine answers, so a seed that failed may
// pass when it is run again; what is kept of a run (logs, plan, summary) is meant
// to be enough to find out why.
//
//	plan.go       a seed and a length → a list of faults
//	world.go      services, proxies, devices, processes: start and end
//	faults.go     each fault: break, wait, heal
//	load.go       clients: submits, cancels, questions; each outcome is remembered
//	hooks.go      the receiver of callbacks
//	collect.go    what Kafka, Postgres, Redis and the processes say afterwards
//	check.go      a history → a list of violations; knows nothing of the rest
//	report.go     the table and the summary file
//
// A lane is one of two sets of proxies: the first process of each stage uses lane
// A, the second lane B. So half of the processes may be cut off, in one direction
// too, while the other half goes on.
package chaos
