// Package chaos breaks everything at random while tasks are submitted, heals it, and
// then checks that every promise was kept. It runs two processes of the real program
// for each stage, on its own Kafka, Redis and Postgres behind toxiproxy.
//
//	make chaos CHAOS_SECONDS=60 CHAOS_SEED=7
//
// The seed determines the plan, which is printed: what breaks, when, and for how
// long. It doesn't determine how the machine reacts, so a seed that failed may pass
// the next time. The logs, plan and summary of each run are kept and should be
// enough to find the cause.
//
//	plan.go       a seed and a duration → a list of faults
//	world.go      starts and stops services, proxies, devices and processes
//	faults.go     each fault: break, wait, heal
//	load.go       the clients: submissions, cancels and queries, with their outcomes;
//	              load_identity.go has retries, reused ids and Kafka transactions
//	topics.go     deletes a topic and creates it again
//	hooks.go      the callback receiver
//	commands.go   runs the program's own checks
//	collect.go    the final state of Kafka, Postgres, Redis and the processes
//	check         a package: what clients, services and processes know after a run
//	              → a list of violations; independent of the rest
//	report.go     the printed table and the summary file
//
// A lane is one of two sets of proxies. The first process of each stage uses lane A,
// the second lane B. So half of the processes can be cut off, even in just one
// direction, while the other half keeps working.
package chaos
