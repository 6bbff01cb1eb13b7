// Package policy chooses a device for a task: one file per policy, and one suite of tests that all
// of them pass.
//
// The decider (package decide) works out which devices may run a task and how many credits each of
// them has. A [Policy] then answers one question: which of these [Candidate] devices should run this
// task, or should the task wait for a better one?
//
//	Request  (the task) ───────┐
//	                           ├──▶ Pick ──▶ Choice: a device, wait, or wait for a better device
//	Snapshot (the candidates) ─┘
//
// A policy has no clock and no lock, and takes no randomness other than [Snapshot.Rand]: the same questions
// get the same answers, which is what lets a simulation repeat a run. It remembers something only in
// [Load.PolicyState], per device, and in [Snapshot.Cache], which lasts until the fleet is read again.
// So a policy can be replaced at any time, and a router that restarts loses nothing.
//
// To add a policy, write it in its own file, with a comment that cites its source and says how it
// differs from it. Then add one line to the registry in policy.go, add the name to package device, and
// run TestPoliciesConform.
package policy
