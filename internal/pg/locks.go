package pg

// Advisory locks, which are numbers that all sessions of a database share. They are listed here so that no two are
// alike; package migrations has 0x62617463680001.
const (
	MaintenanceLock int64 = 0x62617463680002 + iota // one recorder at a time maintains the partitions
	SealerLock                                      // one signs checkpoints
	ResolverLock                                    // one resolves holes
	StatementLock                                   // one transaction at a time adds a statement: two must not get the same number
)
