package router

// powerOfTwo looks at two devices drawn at random and takes the one with fewer
// tasks in flight (Mitzenmacher 1996), which keeps the longest queue short at the
// cost of two looks, and does not herd. Published for equal servers, it is
// unstable on unequal ones: when the slow ones are many, both draws are slow too
// often, and their queues grow without end far below the fleet's capacity. So it
// is done as proxies do it that know the size of a server: draws in proportion to
// weight and slots, and tasks in flight counted for these. What it does not know
// is speed, but for what the operator puts into the weights.
type powerOfTwo struct{}

func (*powerOfTwo) Name() string { return "power_of_two" }
func (*powerOfTwo) Late() bool   { return false }
func (*powerOfTwo) Unit() string { return "tasks" }

func (*powerOfTwo) Pick(_ *Request, f *Field) Choice {
	choice := Choice{Index: Wait, Note: noneFree}
	a := drawByWeight(f, Wait)
	if a == Wait {
		return choice
	}
	choice.Index, choice.Note = a, "the only one with a free credit"
	choice.note(a, f.Cands[a].busy())
	b := drawByWeight(f, a)
	if b == Wait {
		return choice
	}
	choice.note(b, f.Cands[b].busy()) // of equals, the first that was drawn
	return choice.best("the less busy of two drawn at random, for its weight and slots")
}

// busy is the tasks in flight for the weight and slots.
func (c *Candidate) busy() float64 { return float64(c.Used) / c.weight() }
