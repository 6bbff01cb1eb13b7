package router

import "math"

// hash keeps what belongs together on one device, where its cache is warm: all of
// a session, a tenant or a client address (router.hash_by); a task without one
// goes by its id. It is rendezvous hashing (Thaler and Ravishankar 1998): each
// device draws a number from the hash of the key and its id, scaled by its slots,
// and the least wins, at every router alike and after every restart. When a device
// goes, only its keys move; when one gets slots, keys move only to it.
//
// When the winner has no free credit the task goes to the next best rather than
// wait, so a key may have two homes for as long as its first one is full.
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

func (*hash) Name() string { return "hash" }
func (*hash) Late() bool   { return false }
func (*hash) Unit() string { return "" }

// homes is what does not depend on the key.
type homes struct {
	id    []uint64
	scale []float64 // 1/slots
}

func homesOf(f *Field) *homes {
	if h, ok := f.Memo.(*homes); ok {
		return h
	}
	h := &homes{id: make([]uint64, len(f.Cands)), scale: make([]float64, len(f.Cands))}
	for i := range f.Cands {
		h.id[i] = hashOf(f.Cands[i].Device)
		h.scale[i] = 1 / float64(max(1, f.Cands[i].Slots))
	}
	f.Memo = h
	return h
}

func (p *hash) Pick(r *Request, f *Field) Choice {
	home := homesOf(f)
	text := p.key(r)
	if text == "" {
		text = r.ID
	}
	key := hashOf(text)
	choice := Choice{Index: Wait}
	first, firstAt, at := Wait, math.Inf(1), math.Inf(1) // the best of all, and of those with a free credit
	for i, id := range home.id {
		// An exponentially distributed draw with the slots as its rate: −ln(u)/n. It
		// is at least (1 − u)/n, so most need no logarithm.
		u := float64(int64(mix(key^id)>>11)+1) / (1 << 53) //nolint:gosec // 53 bits
		bound := (1 - u) * home.scale[i]
		if bound >= at {
			continue
		}
		free := f.Cands[i].Free() > 0
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
		choice.Note = noneFree
		return choice
	case first:
		choice.Note = "its hash belongs there"
	default:
		choice.Note = "where its hash belongs is full, this is the next"
		choice.note(first, firstAt)
	}
	choice.note(choice.Index, at)
	return choice
}

// hashOf is FNV-1a, its bits mixed: the same on every machine and in every run,
// unlike hash/maphash.
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
