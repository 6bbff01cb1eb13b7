package fleet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
)

// checkHeaders refuses too many header lines, as hyper and cpp-httplib do.
func (d *Device) checkHeaders(r *http.Request) error {
	lines := 1 // Host
	for _, v := range r.Header {
		lines += len(v)
	}
	if most := d.limits().MaxHeaders; most > 0 && lines > most {
		return &apiError{status: 431, kind: "invalid_request_error", message: fmt.Sprintf("The request has more than %d header lines.", most)}
	}
	return nil
}

// onConn is the key of the number of requests that came on a connection.
type onConn struct{}

func withRequests(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, onConn{}, new(atomic.Int64))
}

// requestsOn returns how many requests have come on the connection of a request, this one included.
func requestsOn(r *http.Request) int64 {
	n, _ := r.Context().Value(onConn{}).(*atomic.Int64)
	return n.Load()
}

// countRequest counts a request on its connection.
func countRequest(r *http.Request) {
	if n, ok := r.Context().Value(onConn{}).(*atomic.Int64); ok {
		n.Add(1)
	}
}
