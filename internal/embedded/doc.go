// Package embedded runs the services Batchyard depends on (a Kafka-protocol
// broker, Redis and Postgres) without any installation. `batchyard run`,
// `batchyard dev` and the tests use it; production uses the real services.
//
// # The services
//
//   - Broker: twmb/franz-go's kfake, a single node that speaks the Kafka protocol
//     over TCP on loopback. Its log is always on disk, so a backlog does not grow
//     the heap. It is meant for development and does not replace Kafka.
//   - Redis: alicebob/miniredis, in memory. Its clock is kept running, so keys
//     expire on their own.
//   - Postgres: real Postgres in a child process, using the installed binaries or,
//     if there are none, binaries that are downloaded once.
//
// # Guarantees
//
//   - Whatever the broker or Postgres acknowledged survives the death of this
//     process by any signal: both hand every record to the operating system before
//     they answer. In a persistent directory, Postgres also survives a power
//     failure, because it syncs; the broker does not.
//   - Only one process uses a directory at a time. A second one gets an error that
//     names the first.
//   - Nothing outlives the process: Postgres stops when this process dies, even by
//     SIGKILL, and the next start removes temporary directories that a killed
//     process left behind.
//   - Everything listens on loopback only. Postgres requires a random password,
//     stored next to the data and readable only by its owner.
//   - Each service can be stopped and restarted on the same address, with what the
//     real service would still have: the broker and Postgres keep their data,
//     Redis starts empty.
//
// # States of a service
//
//	        Start
//	          │
//	          ▼      Stop, Kill
//	      ┌─running ───────────▶ stopped
//	      │   ▲                   │   │
//	      │   └──── Restart ──────┘   │
//	Close │      (same address)       │ Close
//	      ▼                           ▼
//	    closed ◀──────────────────────┘   lock released, temporary files removed
//
// # The directory
//
//	lock                 held (flock) while a process uses the directory
//	broker/              topics, segments, committed offsets; port
//	postgres/data        the cluster; postgres/password, postgres/port
//
// If no directory is given, Start creates batchyard-* in the system's temporary
// directory, and Close removes it.
package embedded
