package decide

// heapOf is a binary heap whose elements know their place, so that any of them can be moved or
// removed in O(log n).
type heapOf[T any] struct {
	all  []T
	less func(a, b T) bool
	at   func(x T, i int) // stores the place in x; -1: not in the heap
}

func (h *heapOf[T]) len() int { return len(h.all) }

// first is the least element; the heap must not be empty.
func (h *heapOf[T]) first() T { return h.all[0] }

func (h *heapOf[T]) push(x T) {
	h.all = append(h.all, x)
	h.up(len(h.all) - 1)
}

// remove takes out the element at i.
func (h *heapOf[T]) remove(i int) T {
	x, last := h.all[i], len(h.all)-1
	h.all[i] = h.all[last]
	var zero T
	h.all[last] = zero
	h.all = h.all[:last]
	h.at(x, -1)
	if i < last {
		h.fix(i)
	}
	return x
}

// fix moves the element at i, whose order has changed, to where it belongs.
func (h *heapOf[T]) fix(i int) {
	if !h.down(i) {
		h.up(i)
	}
}

func (h *heapOf[T]) up(i int) {
	x := h.all[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(x, h.all[parent]) {
			break
		}
		h.all[i] = h.all[parent]
		h.at(h.all[i], i)
		i = parent
	}
	h.all[i] = x
	h.at(x, i)
}

func (h *heapOf[T]) down(i int) (moved bool) {
	x, n := h.all[i], len(h.all)
	for {
		child := 2*i + 1
		if child >= n {
			break
		}
		if right := child + 1; right < n && h.less(h.all[right], h.all[child]) {
			child = right
		}
		if !h.less(h.all[child], x) {
			break
		}
		h.all[i] = h.all[child]
		h.at(h.all[i], i)
		i, moved = child, true
	}
	h.all[i] = x
	h.at(x, i)
	return moved
}
