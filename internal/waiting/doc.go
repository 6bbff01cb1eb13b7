// Package waiting says what stands still: for each stage, the oldest thing that it has accepted and not
// finished, since when, and why.
//
// A stage reports [Oldest] things, one for each reason, whenever it is asked. A [Board] asks all stages of a
// process about once a second, and keeps the answers for the metrics and for readiness. Nothing is counted
// as tasks pass: ages are worked out when they are asked for.
//
// Two times matter. Since is when the thing began to wait; its age is a metric. Still is when anything of
// its kind moved last. A backlog may be old and well, as long as it moves; what has not moved for longer than
// its bound is a stall:
//
//	         Since                  Still                    now
//	accepted ──┴── others go first ───┴── nothing moves ──────┴──▶ a stall if longer than the bound
//
// Both are times of this process, with their monotonic readings, so no clock can make or hide a stall. A
// process that starts has seen nothing stand still yet: a restart gives a stage its whole bound again, and
// readiness does not flap while a process is restarted again and again.
package waiting
