// Package live compares routing policies on the whole pipeline as it runs in
// production: the program in its own process, over real HTTP, with devices of
// different speeds. It is behind `batchyard bench route --live`.
//
//	                      this process                                   batchyard serve
//	┌──────────────────────────────────────────────────────────┐   ┌───────────────────────┐
//	│ producer ──tasks.normal──▶ broker ◀──results── watcher   │◀─▶│ api router batcher    │
//	│ agents ──heartbeats every 5 s────────────────────────────┼──▶│ workers audit         │
//	│ devices (HTTP) ◀─────────────────────────requests────────┼───│ callbacks             │
//	│ broker, Redis, Postgres: embedded, or as configured      │   └───────────────────────┘
//	└──────────────────────────────────────────────────────────┘
//
// What it promises:
//
//   - The policies take turns (A B A B …), so that whatever else happens on the
//     machine affects all of them.
//   - Each turn starts from scratch, with new topics, keys, database, devices and
//     process. Nothing learned in one turn carries over to the next.
//   - The turns of a round share a seed: they have the same arrivals, and the n-th
//     request on a device takes the same time.
//   - Every task must have exactly one result. If the results topic shows anything
//     else after a turn, the run fails.
//   - No processes, ports, topics, keys or databases are left behind, even after
//     Ctrl-C. If this process is killed, the kernel ends the other (on Linux) and
//     the embedded services go as well. On external services, the topics and the
//     database of the turn remain; their names start with batchyard-bench-.
//
// A turn:
//
//	start ─▶ warm-up ─▶ open arrivals ─▶ backlog ─▶ drain ─▶ count the results
//	         not        response times   throughput
//	         measured                    utilisation
//
// A response time runs from the call of Submit until a consumer of the results
// topic has the result. Throughput is measured from the first Submit of the backlog
// to its last result, and also to the result that completes 95 % of them, because
// the last few may wait for a slow device while the others are idle. Utilisation is
// measured on the devices: busy slots, weighted by their rate.
package live
