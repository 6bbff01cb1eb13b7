// Package batcher groups assignments into batches: one device, one endpoint,
// one model.
//
//	assignments ──▶ open batches, by device and shape ──▶ batches
//	                  │
//	                  └─ close: count │ bytes │ wait │ idle │ drain
//
// A batch leaves when it is full (count or bytes), when its oldest entry has
// waited long enough, or when its device has nothing else to do: then waiting
// would gain nothing. The thresholds are by endpoint and model.
//
// # When the process dies
//
// A record of assignments is done only when every batch that holds one of them
// is on all in-sync replicas. Until then another batcher reads it again; what
// was written twice runs twice and is answered once.
package batcher
