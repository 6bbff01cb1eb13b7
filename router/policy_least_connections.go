package router

// leastConnections takes the device with the fewest tasks in flight for its
// weight, among equals the one that was picked longest ago. The weight is the
// operator's times the slots, as proxies do it who know the size of a server.
// It learns nothing of speed but by what piles up.
type leastConnections struct{}

func (*leastConnections) Name() string { return "least_connections" }
func (*leastConnections) Late() bool   { return false }
func (*leastConnections) Unit() string { return "tasks" }

func (*leastConnections) Pick(_ *Request, f *Field) Choice {
	line := lineUp(f, func(c *Candidate) float64 { return 1 / c.weight() })
	return line.least(f, "fewest tasks for its weight and slots")
}
