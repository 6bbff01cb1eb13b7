// Package device is the vocabulary of devices: what a device is and which heartbeats are
// valid, what is known about its speed and its health, pools of credits, overrides and
// policies, and which device may run a task ([Eligible]).
//
// It does no I/O. Package device/learn learns a device's speed and health from the
// outcomes of its requests; package device/store shares all of it through Redis.
package device
