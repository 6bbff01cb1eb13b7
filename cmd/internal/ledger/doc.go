// Package ledger keeps the account of all tasks, from Kafka and Postgres alone:
//
//	accepted = terminal + in flight + dead letters + missing
//
// and missing has to be nothing. It reads, and writes nothing but a temporary
// file, so that it may look at an installation at work.
//
// # How a moment is caught
//
// The stages finish a record only when what it became is acknowledged. So a reader that
// asks first how far a stage is, and only then where the next topic ends, finds
// every task at least once, though all of them move:
//
//	Postgres: results, states, how far the recorder is     (one snapshot)
//	tasks.*, tasks.parked, assignments, batches: how far each group is, then the end
//	results: the end                what the recorder has yet to take is behind its offset
//	tasks.*, tasks.parked: the end again   what went back meanwhile
//	dlq: the end
//
// A task is in flight when a record of it is not finished by its stage, when its
// result waits for the recorder, or when it went back while we looked. One that has
// no result and is nowhere is missing.
//
// What is wrong is looked at a second time, from the beginning, when the recorder
// has passed where it was: only what is wrong both times is told.
//
// # How much memory it takes
//
// Each record and row becomes a fact of some fifty bytes. Facts are sorted by
// task, or by position, in pieces that fit into memory, and the pieces merged from
// a temporary file. Memory does not grow with the number of tasks; the file does,
// and has no name any more once it is open, so that nothing is left when the
// process dies.
//
// # How far back it can tell
//
// As far as the topics reach: retention removes records. A result is only said to
// belong to no task if that task must still be in its topic. [Report.Topics]
// says from when on that is.
package ledger
