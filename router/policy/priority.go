package policy

// priority serves high tasks before normal and low ones; within a priority, the tenant's share, the
// level and the time decide. That is the order of the pending window, so the policy only has to
// find the first free device, like fifo. It ignores speed.
type priority struct{}

func (*priority) Name() string    { return "priority" }
func (*priority) BindsLate() bool { return true }
func (*priority) Unit() string    { return "share" }

func (*priority) Pick(_ *Request, s *Snapshot) Choice {
	return leastBusy(s, "tasks go in order of priority, to the first free device")
}
