// Package audit is where the log becomes tables: it records every event and
// every result in Postgres, and answers questions about them.
//
// # What is promised
//
//   - Complete and exact. Each event is one row of audit_log, once: rows and the
//     offset of the record that they were made from commit in one transaction,
//     and reading begins at the offset in Postgres, not at the broker's.
//   - One answer. Of several results of a task the first is taken; the later
//     ones become an event, result.duplicate, unless they are the same again.
//   - The latest state. A row of tasks follows the events and ends with the
//     result, in whatever order these come (see state.go).
//   - A callback is due exactly if its result was taken: same transaction.
//   - Postgres may be away, slow or read-only for any time: nothing is lost, the
//     recorder keeps what it holds, stops reading, and goes on by itself.
//
// # The way of a record
//
//	events ──┐ one goroutine a partition     audit.writers, a partition at one at a time
//	         ├──▶ queue of records as they ──▶ writer ──▶ decode, check, clean
//	results ─┘    came, bounded by rows and              one transaction:
//	              bytes, events beside                    offsets (the fence)
//	              their results                           results, first wins
//	                                                      audit rows (COPY)
//	                                                      states (COPY of new tasks, one upsert)
//	                                                      counts of all (rollup.go)
//	                                                      ends of chains (chain.go)
//	                                                      callbacks, notifications
//	                                                     then Done
//
// There is no waiting for a chunk to fill: while one transaction commits, the
// next chunk gathers. At light load a chunk is one record, under load thousands.
//
// # The fence
//
// stream_offsets holds, for each partition, the offset of the first record that
// is not recorded yet, and the epoch of its owner. A chunk advances the offset
// from exactly the value at which its own records begin; when another process
// has written these records, the row does not match, and the whole transaction
// is rolled back.
//
//	            ┌───────────────── advanced ────────────────┐
//	            ▼                                           │
//	gained ──▶ owned ──chunk──▶ UPDATE … WHERE next_offset = mine AND epoch = mine
//	  epoch+1   ▲                                           │ no such row
//	            │                                           ▼
//	            │                            the partition is somebody else's: forget its records
//	            └── still ours: read the offset again, forget the records below it
//
// The same answers the question whether a commit whose answer was lost has
// happened: then the offset is beyond. What the process held when it died is
// read again by whoever takes the partition, from the offset in Postgres.
//
// # What cannot be recorded
//
// A record that cannot be read, an event that is not in [task.Actions], or
// whatever Postgres refuses for its content goes to the dead-letter topic with
// an event of its own. The records around it are recorded.
package audit
