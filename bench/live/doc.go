// Package live measures routing policies on the whole pipeline as it runs in
// production: the program itself as a process of its own, over real HTTP, with
// devices whose speeds differ. `batchyard bench route --live` is its command.
//
//	                      this process                                   batchyard serve
//	┌──────────────────────────────────────────────────────────┐   ┌───────────────────────┐
//	│ producer ──tasks.normal──▶ broker ◀──results── watcher   │◀─▶│ api router batcher    │
//	│ agents ──heartbeats every 5 s────────────────────────────┼──▶│ workers audit         │
//	│ devices (HTTP) ◀─────────────────────────requests────────┼───│ callbacks             │
//	│ broker, Redis, Postgres: embedded, or those of a file    │   └───────────────────────┘
//	└──────────────────────────────────────────────────────────┘
//
// What is promised:
//
//   - The policies take turns (A B A B …) in one run, so that whatever else the
//     machine does hits all of them.
//   - Each turn begins with nothing: topics, keys, database, devices and the
//     process are new. What was learned in one turn helps nobody in the next.
//   - The turns of a round have the same seed: the same arrivals, and devices
//     whose n-th request takes the same time.
//   - Every task must have been answered once. A turn after which the results
//     topic says otherwise is an error and no figure.
//   - Nothing is left, also after Ctrl-C: processes, ports, topics, keys and
//     databases. When this process is killed, the kernel ends the other (on
//     Linux), and what is embedded goes with it; topics and the database of a
//     turn on services of one's own stay then, named batchyard-bench-….
//
// A turn:
//
//	start ─▶ warm-up ─▶ open arrivals ─▶ backlog ─▶ drain ─▶ count the answers
//	         not        response times   throughput
//	         measured                    utilisation
//
// Response times run from the call of Submit to the moment that a consumer of
// the results topic has the result. Throughput is counted from the first Submit
// of the backlog to its last result, and to the result that makes 95 % of them:
// the last ones may wait for a slow device while the others idle. Utilisation is
// measured at the devices: busy slots, weighted by their rate.
package live
