package recorder

// slab is memory for the decoded events of one chunk at a time. A decoded event takes three times
// the memory of its record and is full of pointers, and so is a result. So records wait undecoded
// in the queue, where garbage collection need not scan them, and the memory of a chunk is reused for the next.
type slab struct{ events []indexedEvent }

// maxSlabEvents is the capacity up to which a slab is kept, about 20 MB.
const maxSlabEvents = 1 << 15

// decode decodes the entries of a chunk. What they hold is valid until reset.
func (s *slab) decode(c chunk) {
	n := 0
	for _, e := range c {
		n += e.framed
	}
	if cap(s.events) < n {
		s.events = make([]indexedEvent, 0, n)
	}
	room := s.events[:n]
	s.events = room
	for _, e := range c {
		switch {
		case !e.undecoded:
		case laneOf(e) == eventsLane:
			e.decodeEvents(room[:e.framed:e.framed])
		default:
			e.decodeResult()
		}
		e.undecoded, e.value = false, nil
		room = room[e.framed:]
	}
}

// Reset takes the memory back from the entries of the last chunk.
func (s *slab) reset() {
	if cap(s.events) > maxSlabEvents {
		s.events = nil
		return
	}
	clear(s.events)
	s.events = s.events[:0]
}
