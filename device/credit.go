package device

// Classes of pools: how work is sent to a device.
const (
	ClassSingle  = "single"  // one request per task: chat, responses
	ClassBatched = "batched" // many tasks in one request: embeddings, completions
)

// Pool returns the name of a device's pool of credits of a class.
func Pool(deviceID, class string) string { return deviceID + "/" + class }

// Want asks for credits of one pool.
type Want struct {
	Pool  string
	N     int
	Limit int // how many credits the taker thinks the pool may have in use
	// ByPriority is N by priority, highest first; credits are granted in this order. If it
	// is all zero, the whole N has the highest priority.
	ByPriority [3]int
}

// Ask reserves the last N credits of a full pool for tasks of a priority that wait at the
// asker: until the ask is withdrawn (N 0) or expires, others get none of them for a lower
// priority.
type Ask struct {
	Pool     string
	Priority int // 0 is the highest priority
	N        int
}

// Grant answers a Want.
type Grant struct {
	Pool      string
	Lease     string // empty when N is 0
	N         int    // may be less than wanted
	Used      int    // credits in use in the pool after the grant
	Outranked bool   // got less than wanted because another router waits with a higher priority
}

// LeaseRef identifies a lease.
type LeaseRef struct{ Pool, Lease string }

// Release returns N credits of a lease.
type Release struct {
	Pool, Lease string
	N           int
}
