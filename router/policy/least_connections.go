package policy

// leastConnections takes the device with the fewest tasks in flight for its weight; among equals, the
// one picked longest ago. The weight is the operator's times the slots, as in proxies that know the
// size of a server. It notices speed only by the tasks that pile up.
type leastConnections struct{}

func (*leastConnections) Name() string    { return "least_connections" }
func (*leastConnections) BindsLate() bool { return false }
func (*leastConnections) Unit() string    { return "tasks" }

func (*leastConnections) Pick(_ *Request, s *Snapshot) Choice {
	line := lineUp(s, func(c *Candidate) float64 { return 1 / c.weight() })
	return line.least(s, "it has the fewest tasks for its weight and slots")
}
