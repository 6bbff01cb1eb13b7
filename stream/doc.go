// Package stream reads and writes logs: it is the only package that knows the
// Kafka client. Every stage stands on it.
//
// # What is promised
//
//   - Produced is durable. [Log.Produce] returns, and [Unit.Acked] is called
//     with nil, when all in-sync replicas have the messages. What may be retried
//     is retried, for as long as the caller waits. A retry may write a message
//     twice: readers tolerate duplicates. Messages of one key, handed over one
//     after the other, are written in that order, retries included.
//   - Consumed is finished. An offset is committed only when every record below
//     it is [Record.Done]. Records may be finished in any order, from any
//     goroutine. Which records above the committed offset are finished travels
//     in the commit's metadata, so that whoever owns the partition next skips
//     them.
//   - Commits never go backwards. They carry the generation of the group that
//     owns the partition; the broker refuses those of an older one.
//   - Memory is bounded. Records that were fetched and are not done count
//     against a budget of records and bytes; when it is used up, nothing is
//     fetched. A part of it belongs to each partition alone, so that one that is
//     stuck cannot starve the others.
//   - A record is read as soon as it is in the log. That holds for transactions
//     of other clients, too: what they abort later was read all the same.
//   - The broker may go away for any time. Nothing is lost and nothing needs a
//     restart.
//
// # The life of a partition
//
// A member of a group owns partitions. When members come or go, all join again
// and the leader deals the partitions out anew, leaving with each member as many
// as it can of those it has. A partition that stays goes on undisturbed.
//
//	   ┌──────────────────────────────────────────────────────────────┐
//	   ▼                                                              │
//	joining ──assigned──▶ owning ──rebalance──▶ commit, join again ───┤
//	   ▲                   │   │                  │                   │
//	   │                   │   │                  ├─ still ours: goes on, records in flight stay valid
//	   │                   │   │                  └─ somebody else's: handler's ctx ends, records are Lost
//	   │                   │   │
//	   └──── evicted ──────┘   └──Consume's ctx ends──▶ draining ──▶ commit, leave
//	    all partitions lost                             nothing is fetched; records in flight
//	                                                    have DrainTimeout to be Done
//
// When the process dies in any of these states, the broker notices after the
// session timeout and others read on from the last commit; what was done since
// is done again.
//
// # The way of a message
//
//	Produce, Outbox.Put ──▶ queue of the partition ──▶ request to its leader ──▶ acknowledged
//	                          ▲                          │
//	                          └── back to the front ◀────┘ the broker is away, elects, …
//
// There is one request at a time for a partition and a few for a broker. What
// comes while they are under way leaves together with the next: single messages
// leave at once at light load, and many leave in one request under load.
package stream
