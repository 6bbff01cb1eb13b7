package decide

import "time"

// Binding says when tasks are bound to devices.
type Binding string

// The bindings.
const (
	BindAuto  Binding = "auto"  // as the policy was published
	BindLate  Binding = "late"  // once the device can soon start the task, so that it waits here
	BindEarly Binding = "early" // as soon as the task arrives, so that it queues at the device
)

// Config holds the settings of the decisions. The router's configuration file documents them under
// the same names.
type Config struct {
	Binding             Binding
	MaxPendingTasks     int   // held in memory per source topic
	MaxPendingBytes     int64 // of their records, per source topic
	MaxAsideBytes       int64 // of memory for tasks that were set aside, per source topic
	MaxRoundTasks       int   // assigned in one round
	MaxPrefetch         int   // credits that a device may have beyond its slots, bound late
	MaxDeviceQueue      int   // tasks that may queue at a device, bound early
	BatchCreditsPerSlot int   // tasks that one slot counts for where requests are batched
	DispatchLatency     time.Duration
	SlowStart           time.Duration // until a device that joined has its full credits; 0: at once
	ProbeInterval       time.Duration // a device not measured for this long is due for a probe
	ShareNormal         float64       // guaranteed share of the work of normal tasks
	ShareLow            float64       // guaranteed share of the work of low tasks
	LevelBoost          time.Duration // how much earlier than submitted a task counts, per level
	TenantWeights       map[string]float64
	RefreshInterval     time.Duration // between two readings of the fleet
}
