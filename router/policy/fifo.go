package policy

// fifo serves tasks in the order of their submission, whatever their priority, level and tenant, and
// gives the next one to the device with the most room. It ignores speed: an idle slow device takes
// a task that a fast one would have finished earlier.
type fifo struct{}

func (*fifo) Name() string    { return "fifo" }
func (*fifo) BindsLate() bool { return true }
func (*fifo) Unit() string    { return "share" }

// ByArrival makes the pending window order tasks by their time of submission alone.
func (*fifo) ByArrival() bool { return true }

func (*fifo) Pick(_ *Request, s *Snapshot) Choice {
	return leastBusy(s, "tasks go in order of arrival, to the first free device")
}
