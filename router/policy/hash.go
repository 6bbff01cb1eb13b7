package policy

import "math"

// hash keeps what belongs together on one device, where its cache is warm: all tasks of a session, a
// tenant or a client address (router.hash_by). A task without one goes by its id. It is rendezvous
// hashing (Thaler and Ravishankar 1998): each device draws a number from the hash of the key and its
// own id, scaled by its slots, and the smallest wins, on every router alike and after every restart.
// When a device leaves, only its keys move; when a device gets slots, keys move only to it.
//
// When the winner has no free credit, the task goes to the second best instead of waiting, so a key
// has two homes while its first one is full.
type hash struct {
	key func(*Request) string
}

func newHash(cfg Config) (Policy, error) {
	switch cfg.HashBy {
	case "tenant":
		return &hash{func(r *Request) string { return r.Tenant }}, nil
	case "client":
		return &hash{func(r *Request) string { return r.Client }}, nil
	}
	return &hash{func(r *Request) string { return r.Session }}, nil
}

func (*hash) Name() string    { return "hash" }
func (*hash) BindsLate() bool { return false }
func (*hash) Unit() string    { return "" }

// homes is the part that does not depend on the key.
type homes struct {
	id    []uint64
	scale []float64 // 1/slots
}

func homesOf(s *Snapshot) *homes {
	if h, ok := s.Cache.(*homes); ok {
		return h
	}
	h := &homes{id: make([]uint64, len(s.Candidates)), scale: make([]float64, len(s.Candidates))}
	for i := range s.Candidates {
		h.id[i] = hashOf(s.Candidates[i].Device)
		h.scale[i] = 1 / float64(max(1, s.Candidates[i].Slots))
	}
	s.Cache = h
	return h
}

func (p *hash) Pick(r *Request, s *Snapshot) Choice {
	home := homesOf(s)
	text := p.key(r)
	if text == "" {
		text = r.ID
	}
	key := hashOf(text)
	choice := Choice{Index: Wait}
	first, firstAt, at := Wait, math.Inf(1), math.Inf(1) // the best of all, and of those with a free credit
	for i, id := range home.id {
		// An exponentially distributed draw with the slots as its rate: −ln(u)/n. It
		// is at least (1 − u)/n, so most draws need no logarithm.
		u := float64(int64(mix(key^id)>>11)+1) / (1 << 53) //nolint:gosec // 53 bits
		bound := (1 - u) * home.scale[i]
		if bound >= at {
			continue
		}
		free := s.Candidates[i].Free() > 0
		if !free && bound >= firstAt {
			continue
		}
		draw := -math.Log(u) * home.scale[i]
		if draw < firstAt {
			first, firstAt = i, draw
		}
		if free && draw < at {
			choice.Index, at = i, draw
		}
	}
	switch choice.Index {
	case Wait:
		choice.Why = noneFree
		return choice
	case first:
		choice.Why = "its key hashes to it"
	default:
		choice.Why = "the device that its key hashes to is full, and it is the next"
		choice.consider(first, firstAt)
	}
	choice.consider(choice.Index, at)
	return choice
}

// hashOf is FNV-1a with mixed bits: unlike hash/maphash, it is the same on every machine and in
// every process.
func hashOf(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix makes every bit depend on every other (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
