package stream

// Gap is records that were deleted from a log before their stage read them: by retention, or by someone.
// Like a record it is handed out in the order of the log, and belongs to who owns the partition.
type Gap struct {
	Topic       string // without the prefix
	Partition   int
	First, Last int64 // offsets of the first and the last of them

	owner *partition
}

// Lost reports whether another member owns the partition now. It finds the gap, too, unless what was
// read before has been committed.
func (g *Gap) Lost() bool { return g.owner != nil && g.owner.lost.Load() }

// Done does nothing: the offsets of a gap are committed with those around it.
func (g *Gap) Done() {}

// passGap passes a gap on after everything that was read before it. It returns false when the partition
// ends.
func (p *partition) passGap(to chan<- delivery, from, next int64) bool {
	p.mu.Lock()
	life := p.lives
	p.mu.Unlock()
	gap := &Gap{Topic: p.c.cfg.Topic, Partition: p.id, First: from, Last: next - 1, owner: p}
	select {
	case to <- delivery{next: next, life: life, gap: gap}:
		return true
	case <-p.ctx.Done():
		return false
	}
}
