package router

// powerOfTwo looks at two devices chosen at random and takes the one with fewer
// tasks in flight (Mitzenmacher 1996), which keeps the longest queue short at the
// cost of two looks, and does not herd. It was published for equal servers and
// counts tasks, not tasks a slot, and not time: a slow device with one task looks
// better than a fast one with two.
type powerOfTwo struct{}

func (*powerOfTwo) Name() string { return "power_of_two" }
func (*powerOfTwo) Late() bool   { return false }
func (*powerOfTwo) Unit() string { return "tasks" }

func (*powerOfTwo) Pick(_ *Request, f *Field) Choice {
	choice := Choice{Index: Wait, Note: noneFree}
	a := anyFree(f, Wait)
	if a == Wait {
		return choice
	}
	choice.Index, choice.Note = a, "the only one with a free credit"
	choice.note(a, float64(f.Cands[a].Used))
	b := anyFree(f, a)
	if b == Wait {
		return choice
	}
	choice.note(b, float64(f.Cands[b].Used)) // equals: the first that was drawn
	return choice.best("the less busy of two drawn at random")
}
