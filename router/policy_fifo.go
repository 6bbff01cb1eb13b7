package router

// fifo serves tasks in the order in which they came, whatever their priority,
// level and tenant, and gives the next one to the device with the most room: the
// first free. It knows nothing of speed, so a slow device that is idle takes a
// task that a fast one would have ended earlier.
type fifo struct{}

func (*fifo) Name() string { return "fifo" }
func (*fifo) Late() bool   { return true }
func (*fifo) Unit() string { return "share" }

// ByArrival makes the window order tasks by their time of submission alone.
func (*fifo) ByArrival() bool { return true }

func (*fifo) Pick(_ *Request, f *Field) Choice { return leastBusy(f, "first come, to the first free") }

// byArrival is a policy that may ask for tasks in the order in which they came.
// All others get them by priority, tenant's share and level.
type byArrival interface {
	ByArrival() bool
}

// leastBusy takes the device with the least part of its slots taken, among equals
// the one that was picked longest ago.
func leastBusy(f *Field, why string) Choice {
	line := lineUp(f, func(c *Candidate) float64 { return 1 / float64(max(1, c.Slots)) })
	return line.least(f, why)
}
