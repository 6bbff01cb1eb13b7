package task

import "time"

// Lease is the right to one slot ahead on a device, as the router took it from
// Redis. Whoever holds the assignment renews it, and gives it back when the
// attempt ends; it is free again by itself when the holder dies.
type Lease struct {
	_msgpack struct{} `msgpack:",as_array"`

	Pool string // which of the device's pools the credit is from: see package device
	ID   string // the lease; it covers the assignments of one round of picks for one pool
}

// DeviceRef says which device and where.
type DeviceRef struct {
	_msgpack struct{} `msgpack:",as_array"`

	ID    string
	URL   string
	Slots int
}

// Assignment is a task, a device, an attempt and the credit for it. The order
// of the fields is the positional wire form: append only.
type Assignment struct {
	_msgpack struct{} `msgpack:",as_array"`

	Task       Task
	Device     DeviceRef
	Attempt    int
	Lease      Lease
	IdleSlots  int // slots of the device without work when it was picked: above 0, a batch need not wait
	AssignedAt time.Time
	Probe      bool // the device is let alone for failing; this task tests it all the same
}

// Batch is assignments for one device and one compatible request shape, sent
// together. The order of the fields is the positional wire form: append only.
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
