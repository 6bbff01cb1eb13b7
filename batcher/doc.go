// Package batcher groups assignments into batches for one device, endpoint and model.
//
// Devices answer many embedding or completion tasks in one request almost as fast as one, so
// tasks that wait a moment for each other are done sooner. For the other endpoints a batch is
// only how tasks travel to the workers.
//
//	assignments ──▶ open batches, by device, endpoint and model ──▶ batches
//	                  │
//	                  └─ closed by: count │ bytes │ wait │ idle │ drain
//
// A batch closes when it is full (count or bytes), when its oldest task has waited long enough,
// or when its device has nothing else to do, because then waiting would gain nothing. The
// thresholds depend on endpoint and model.
//
// # When the process dies
//
// A record of assignments is done only when every batch with one of its assignments is on all
// in-sync replicas. Until then another batcher reads it again. What was written twice runs
// twice, and the recorder keeps one result.
//
// # Races
//
// One goroutine owns the open batches. Partitions hand their assignments over through a channel,
// and so does the watcher of freed credits. A partition that is lost between reading and handing
// over is noticed by the record, whose entries are then dropped.
package batcher
