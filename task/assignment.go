package task

import "time"

// Lease is one credit of a device, as the router took it from Redis. Whichever process
// holds the assignment renews it, and releases it when the attempt ends. If that process
// dies, it expires.
type Lease struct {
	_msgpack struct{} `msgpack:",as_array"`

	Pool string // the pool of the credit: see device.Pool
	ID   string // the lease; it covers the assignments of one round for one pool
}

// DeviceRef is a device and its address.
type DeviceRef struct {
	_msgpack struct{} `msgpack:",as_array"`

	ID    string
	URL   string
	Slots int
	Model string // the device's own name of the model, if it differs from the task's
}

// Assignment is a task, the device chosen for it, the number of the attempt and its
// credit. The order of the fields is the positional wire form: append only.
type Assignment struct {
	_msgpack struct{} `msgpack:",as_array"`

	Task       Task
	Device     DeviceRef
	Attempt    int
	Lease      Lease
	IdleSlots  int // idle slots of the device when it was chosen: above 0, a batch need not wait
	AssignedAt time.Time
	Probe      bool // the device's breaker is open; this task tests the device anyway
}

// Batch is a group of assignments for one device whose requests can be sent together. The
// order of the fields is the positional wire form: append only.
type Batch struct {
	_msgpack struct{} `msgpack:",as_array"`

	ID          string
	Device      DeviceRef
	Endpoint    string
	Model       string
	Reason      string // why it closed: see package batcher
	OpenedAt    time.Time
	ClosedAt    time.Time
	Assignments []Assignment
}
