package policy

// powerOfTwo draws two devices at random and takes the one with fewer tasks in flight (Mitzenmacher
// 1996). That keeps the longest queue short at the cost of two looks, and does not herd. It was
// published for equal servers; on unequal ones it is unstable: where the slow devices are many, both
// draws are slow too often, and their queues grow without bound far below the fleet's capacity. So
// it is done here as in proxies that know the size of a server: the draws are in proportion to weight
// and slots, and tasks in flight are counted relative to them. It does not know speed, except through the
// operator's weights.
type powerOfTwo struct{}

func (*powerOfTwo) Name() string    { return "power_of_two" }
func (*powerOfTwo) BindsLate() bool { return false }
func (*powerOfTwo) Unit() string    { return "tasks" }

func (*powerOfTwo) Pick(_ *Request, s *Snapshot) Choice {
	choice := Choice{Index: Wait, Why: noneFree}
	a := drawByWeight(s, Wait)
	if a == Wait {
		return choice
	}
	choice.Index, choice.Why = a, "only it has a free credit"
	choice.consider(a, s.Candidates[a].tasksByWeight())
	b := drawByWeight(s, a)
	if b == Wait {
		return choice
	}
	choice.consider(b, s.Candidates[b].tasksByWeight()) // of equals, the first draw wins
	return choice.best("it is the less busy of two random devices, for its weight and slots")
}

// tasksByWeight is the tasks in flight relative to the weight and slots.
func (c *Candidate) tasksByWeight() float64 { return float64(c.Used) / c.weight() }
