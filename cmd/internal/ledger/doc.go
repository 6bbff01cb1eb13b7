// Package ledger accounts for every task, from Kafka and Postgres alone:
//
//	accepted = terminal + in flight + dead letters + missing
//
// where missing must be 0. It writes nothing except a temporary file, so it can check an
// installation that is running.
//
// # How it reads a moving system
//
// A stage finishes a record only after everything it became is acknowledged. Reading first
// the offsets that a stage has committed and then the end of the next topic therefore
// finds every task at least once, even while tasks move:
//
//	Postgres: results, states, offsets of the recorder     (one snapshot)
//	tasks.*, tasks.parked, assignments, batches: committed offsets of each group, then the end
//	results: the end                       results from the recorder's offset on are unrecorded
//	tasks.*, tasks.parked: the end again   tasks that were requeued meanwhile
//	dlq: the end
//
// A task is in flight if its stage has not finished one of its records, if its result is
// unrecorded, or if it was requeued during the check. A task that has no result and is
// nowhere is missing.
//
// If the first pass finds problems, a second pass starts over once the recorder has caught
// up. Only problems that both passes find are reported.
//
// # Memory
//
// Each record and row becomes a fact of about fifty bytes. Facts are sorted by task, or by
// position, in runs that fit into memory and are then merged from a temporary file. Memory
// does not grow with the number of tasks; the file does. It is unlinked as soon as it is
// open, so nothing remains if the process dies.
//
// # Limits
//
// The check reaches as far back as the topics do: retention removes records. A result
// counts as having no task only if the task's record must still be in its topic.
// [Report.Topics] says since when each topic is complete.
package ledger
