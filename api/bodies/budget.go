// Package bodies reads bodies of requests within bounds: of each, and of all together.
package bodies

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/batchyard/batchyard/internal/metrics"
)

var (
	// ErrFull says that the memory for bodies is used up for now.
	ErrFull = errors.New("the memory for request bodies is used up")
	// ErrBroken says that a body ended before its end.
	ErrBroken = errors.New("the body broke off")
)

// TooLargeError reports a body that is larger than it may be.
type TooLargeError struct{ Limit int64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the body is larger than %d bytes", e.Limit)
}

// Budget bounds the bytes of all bodies that are in memory. A body takes its share
// while it is read, and fails when nothing is left: bodies never wait for each other,
// so they cannot deadlock.
type Budget struct {
	limit, used atomic.Int64
	metrics     *metrics.API
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64, m *metrics.API) *Budget {
	b := &Budget{metrics: m}
	b.limit.Store(limit)
	return b
}

func (b *Budget) take(n int64) bool {
	if used := b.used.Add(n); used > b.limit.Load() {
		b.used.Add(-n)
		return false
	}
	b.metrics.BodyBytes.Add(float64(n))
	return true
}

func (b *Budget) give(n int64) {
	b.used.Add(-n)
	b.metrics.BodyBytes.Sub(float64(n))
}

// Read reads a body of at most limit bytes. Call release when the bytes are no
// longer used, also after an error: it returns their share of the budget. An error is
// [ErrFull], [ErrBroken] or a *[TooLargeError].
func (b *Budget) Read(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, release func(), err error) {
	var taken int64
	release = func() { b.give(taken); taken = 0 }
	if r.ContentLength > limit {
		return nil, release, &TooLargeError{limit}
	}
	size := int64(64 << 10)
	if r.ContentLength >= 0 {
		size = r.ContentLength + 1 // room to see the end
	}
	src := http.MaxBytesReader(w, r.Body, limit)
	for {
		// Taken before it is allocated: a header may announce bytes that never come, but
		// never more than the budget.
		grow := size - int64(cap(body))
		if grow > 0 {
			if !b.take(grow) {
				b.metrics.BodiesFull.Inc()
				return nil, release, ErrFull
			}
			taken += grow
			bigger := make([]byte, len(body), size)
			copy(bigger, body)
			body = bigger
		}
		n, err := src.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var large *http.MaxBytesError
		switch {
		case errors.Is(err, io.EOF):
			return body, release, nil
		case errors.As(err, &large):
			return nil, release, &TooLargeError{limit}
		case err != nil:
			return nil, release, ErrBroken
		}
		if len(body) == cap(body) {
			size = min(2*int64(cap(body)), limit+1)
		}
	}
}
