package resolve

// NewSmall returns a resolver that remembers few tasks.
func NewSmall(deps Deps, most int) *Resolver { return &Resolver{Deps: deps, max: most} }
