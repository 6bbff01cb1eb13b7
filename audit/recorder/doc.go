// Package recorder is the stage that turns the log into tables: it writes every event and every
// result to Postgres. The rows of the audit log have the format that package audit specifies.
//
// # What it promises
//
//   - Complete and exact. Each event becomes one row of audit_log, once. Rows commit in one
//     transaction with the offset of the record they came from, and reading starts at the offset
//     in Postgres, not at the broker's (offsets.go).
//   - One answer. The first result of a task wins. Each later one becomes an event,
//     result.duplicate, unless it is the same result again (results.go). A result for another
//     request than the one the id belongs to becomes a dead letter (requests.go).
//   - The latest state. A row of tasks follows the events and ends with the result, in whatever
//     order they arrive (package states).
//   - A callback is due if and only if its result won: same transaction.
//   - Postgres may be away, slow or read-only for any length of time. Nothing is lost: the
//     recorder keeps what it holds, stops reading, and continues by itself (writer.go).
//
// # How a record passes
//
//	events ──┐ one goroutine per         audit.writers, each with its own partitions
//	         ├─▶ partition ──▶ queue ──▶ writer ──▶ decode, validate, clean
//	results ─┘   bounded by rows and bytes;         one transaction per chunk:
//	             records stay undecoded               offsets (the fence)
//	                                                  results, first wins
//	                                                  audit rows (COPY)
//	                                                  states
//	                                                  rollups
//	                                                  ends of the chains
//	                                                  callbacks, notifications
//	                                                then Done
//
// A writer never waits for a chunk to fill: while one transaction commits, the next chunk
// gathers. At light load a chunk is one record, under load thousands.
//
// # What cannot be recorded
//
// A record that cannot be decoded, an event that is not in [task.Actions], and whatever Postgres
// refuses for its content goes to the dead-letter topic, with an event. The records around it are
// recorded.
package recorder
