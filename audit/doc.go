// Package audit specifies the audit log: what a row is, what its hash covers, and what a checkpoint
// is. It stores nothing. Package recorder writes the log, package verify checks it, package query
// reads it; docs/audit.md shows how to check a log with none of our code.
//
// # Rows
//
// A row of table audit_log is one event (package task), or a result that came too late to count. It
// was made from a record of Kafka, and its [Source] identifies it: topic, partition and offset of
// the record, and the index within it. [RowColumns] lists its columns. The table has a partition
// for each UTC day of the events' times, and a default partition for times that are out of range.
//
// # Chains
//
// Each row names the row before it by its hash. There is a chain for each partition of the topics
// that rows are made from: the owner of the partition is the only process that may write, and it
// writes in the order of offsets.
//
//	genesis ◀── row 1 ◀── row 2 ◀── … ◀── row n      audit_chains: n, hash of row n
//
// The hash of a row is SHA-256 over prev_hash and over the fields of [HashedColumns] as COPY writes
// them in binary. So the recorder hashes what it sends, the verification hashes what it receives,
// and neither decodes anything. When the retention drops a day, audit_dropped keeps the first
// prev_hash and the last row_hash of each run of rows, so that the chains stay connected.
//
// # Statements
//
// What would otherwise look like tampering is explained by a [Statement]: a day that retention dropped,
// another version of the schema, a restore that an operator accepted. Statements are signed and name each
// other by their hashes, too; the end of their chain is in every checkpoint.
//
// # Checkpoints
//
// Anyone who can write to the database can also recompute a whole chain. So the recorders sign where
// all chains end, and write that down where others can keep it: see [Checkpoint].
package audit
