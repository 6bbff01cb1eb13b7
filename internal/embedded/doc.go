// Package embedded runs what Batchyard stands on inside its own process: a
// Kafka-protocol broker, Redis and Postgres. It is for `batchyard run`, for
// `batchyard dev` and for tests; production uses the real services.
//
// # What the parts are
//
//   - Broker: twmb/franz-go's kfake, one node, speaking the Kafka protocol over
//     TCP on loopback. Its log is always on disk, so that a backlog does not
//     grow the heap. It is a single node for development, not a Kafka.
//   - Redis: alicebob/miniredis, in memory, with its clock kept moving so that
//     keys expire by themselves.
//   - Postgres: the real one, a child process, from the binaries that are
//     installed or, without any, from binaries downloaded once.
//
// # What is promised
//
//   - What the broker or Postgres acknowledged survives the death of this
//     process by any signal: both hand every record to the operating system
//     before they answer. The loss of power is survived by Postgres in a kept
//     directory (it syncs), not by the broker (it does not).
//   - A directory is used by one process at a time: a second one gets an error
//     that says so.
//   - Nothing outlives the process: Postgres is stopped when this process dies,
//     even by SIGKILL, and temporary directories that a killed process left are
//     removed when the next one starts.
//   - Everything listens on loopback only. Postgres wants a random password that
//     is kept, readable by its owner alone, beside the data.
//   - Every part can be stopped and started again on the same address, with what
//     the real service would still know: the broker and Postgres their data,
//     Redis nothing.
//
// # The life of a part
//
//	        Start
//	          │
//	          ▼      Stop, Kill
//	      ┌─running ───────────▶ stopped
//	      │   ▲                   │   │
//	      │   └──── Restart ──────┘   │
//	Close │      (same address)       │ Close
//	      ▼                           ▼
//	    closed ◀──────────────────────┘   lock given back, temporary files removed
//
// # The directory
//
//	lock                 held (flock) while a process uses the directory
//	broker/              topics, segments, committed offsets; port
//	postgres/data        the cluster; postgres/password, postgres/port
//
// Without a directory a temporary one, batchyard-*, is made in the system's
// temporary directory and removed by Close.
package embedded
