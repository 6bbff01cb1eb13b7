package router

// priority serves high tasks before normal and low ones, within a priority by
// tenant's share, level and time: the order of the window. The next one goes to
// the first free device, as with fifo; speed is not looked at.
type priority struct{}

func (*priority) Name() string { return "priority" }
func (*priority) Late() bool   { return true }
func (*priority) Unit() string { return "share" }

func (*priority) Pick(_ *Request, f *Field) Choice {
	return leastBusy(f, "highest priority first, to the first free")
}
