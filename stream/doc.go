// Package stream reads and writes Kafka topics. Only it knows the Kafka client; all stages are built on it.
//
// # Guarantees
//
//   - What was produced is durable. [Log.Produce] returns nil, and [Unit.Acked] is called with nil, once all
//     in-sync replicas have the messages. Retriable errors are retried for as long as the caller waits. A
//     retry may write a message twice, so readers tolerate duplicates. Messages with the same key, handed
//     over one after the other, are written in that order, retries included.
//   - What was committed is finished. An offset is committed only when every record below it is
//     [Record.Done]. Records may be finished in any order, from any goroutine. The commit's metadata lists
//     the records above the committed offset that are finished too, and the next owner of the partition skips
//     them.
//   - Commits never go backwards. They carry the generation of the consumer group; the broker refuses a
//     commit from an older one.
//   - Memory is bounded. Fetched records count against a budget of records and bytes until they are done, and
//     fetching pauses when it is used up. Each partition has a share of its own, so one partition that is
//     stuck cannot starve the others.
//   - A stage that has no room for a record can set it aside ([Record.SetAside]) and read it again later
//     ([Ownership.Recall]). No commit passes it meanwhile.
//   - Of other clients' transactions, only committed ones are read (read_committed). A partition is read up
//     to the first record of a transaction that is still open.
//   - What was fetched is decompressed record by record. A record that is too large, or a batch that cannot
//     be read, is delivered as [Record.Incomplete], so that the stage can make a dead letter of it and
//     the partition continues.
//   - What was written by this installation can be told from what others wrote: [Record.Ours].
//   - The brokers may be away for any length of time. Nothing is lost and nothing needs a restart.
//
// # States of a consumer
//
// Each member of a consumer group owns some partitions. When members come or go, all of them join again and
// the leader reassigns the partitions, changing as few owners as it can. A partition that keeps its owner is
// not interrupted.
//
//	   ┌──────────────────────────────────────────────────────────────┐
//	   ▼                                                              │
//	joining ──assigned──▶ owning ──rebalance──▶ commit, join again ───┤
//	   ▲                   │   │                  │                   │
//	   │                   │   │                  ├─ still ours: records in flight stay valid
//	   │                   │   │                  └─ another member's: handler's ctx ends, records are Lost
//	   │                   │   │
//	   └──── evicted ──────┘   └──Consume's ctx ends──▶ draining ──▶ commit, leave
//	    all partitions lost                             fetching stops; records in flight
//	                                                    have DrainTimeout to be Done
//
// If the process dies in any of these states, the broker notices after the session timeout and other members
// read on from the last commit. Whatever was finished since then is done again.
//
// # Path of a message
//
//	Produce, Outbox.Put ──▶ queue of the partition ──▶ request to its leader ──▶ acknowledged
//	                          ▲                          │
//	                          └── back to the front ◀────┘ broker unreachable, leader election, …
//
// There is at most one request at a time per partition and a few per broker. Messages that arrive meanwhile
// leave together in the next request. So at light load a message leaves immediately, and under load many
// share one request.
//
// # Races
//
//   - [Record.Done] and [Record.Lost] may be called from any goroutine, at any time, also by former owners.
//   - What is unfinished of a partition is guarded by partition.mu, the producer's queues
//     by producer.mu, an outbox's pending units by Outbox.mu. No callback runs under a lock.
//   - There is one commit at a time per consumer, so a slow commit cannot overtake a later one.
package stream
