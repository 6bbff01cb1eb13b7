// Package chaos breaks everything at random while tasks are submitted, heals it, and
// then checks that every promise was kept. It runs two processes of the real program
// for each stage, on its own Kafka, Redis and Postgres behind toxiproxy.
//
//	make chaos CHAOS_SECONDS=60 CHAOS_SEED=7    much at the same time
//	make soak SOAK_SEED=1                       a month of operation in minutes
//
// The seed determines the plan, which is printed: what breaks, when, and for how
// long. It doesn't determine how the machine reacts, so a seed that failed may pass
// the next time. The logs, plan and summary of each run are kept and should be
// enough to find the cause.
//
// Until all else is done, there are more tasks that no device can run than routers hold in memory.
//
// A soak is another plan and other settings in the same world. Kafka keeps records for
// seconds, in small segments; each stage in turn is absent for longer than that; tasks
// wait for longer than that; topics get more partitions, and processes and devices come
// and go. For the first fifth, there are callbacks that no host answers. What Kafka deletes before it is read is a hole. Each hole has to be named, and
// the tasks in it run again or end as lost. A task whose events and result were all in
// holes is unknown to Postgres; the summary counts these.
//
//	plan.go       a seed and a duration → a list of faults
//	profile.go    what distinguishes chaos from a soak: plan, settings, retention; the
//	              plan of a soak is in soak.go
//	world.go      starts and stops services, proxies, devices and processes
//	faults.go     each fault: break, wait, heal; stages.go has those of whole stages,
//	              topics and disks, topics.go deletes a topic and creates it again
//	load.go       the clients: submissions, cancels and queries, with their outcomes;
//	              load_identity.go has retries, reused ids and Kafka transactions
//	standing.go   what waits throughout a run, and must not hold up anything else
//	lookout.go    looks once a second where everything stands, and for how long each
//	              thing may stand still
//	commands.go   runs the program's own checks
//	collect.go    the final state of Kafka, Postgres, Redis and the processes
//	report.go     the printed table and the summary file
//
//	services      a package: runs Kafka, Redis, Postgres and the proxies
//	hooks         a package: the callback receiver
//	process       a package: runs processes of the program
//	tape          a package: what was ever in the topics, even if it was deleted since
//	watch         a package: finds what stands still although it could move
//	check         a package: what clients, services and processes know after a run
//	              → a list of violations; independent of the rest
//
// A lane is one of two sets of proxies. The first process of each stage uses lane A,
// the second lane B. So half of the processes can be cut off, even in just one
// direction, while the other half keeps working.
package chaos
