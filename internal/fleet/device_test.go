package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const forever = 24 * time.Hour

func TestSlotsAndQueueAreEnforced(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Slots: 2, Queue: 1, ServiceTime: forever})
	c.Timeout = 0
	d := f.Device("a")
	var wg sync.WaitGroup
	defer wg.Wait()
	var cancels []context.CancelFunc
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cancels = append(cancels, cancel)
		wg.Go(func() {
			post(ctx, c, d.URL()+"/v1/chat/completions", hello, "Idempotency-Key", strconv.Itoa(i))
		})
		eventually(t, "the request arrives", func() bool { st := d.Stats(); return st.Running+st.Waiting == i+1 })
	}
	st := d.Stats()
	require.Equal(t, []int{2, 1, 3, 3}, []int{st.Running, st.Waiting, st.InFlight, st.MaxInFlight})
	metrics := get(c, d.URL()+"/metrics")
	require.Contains(t, string(metrics.body), `vllm:num_requests_waiting{model_name="*"} 1`)

	over := post(t.Context(), c, d.URL()+"/v1/chat/completions", hello)
	require.Equal(t, 429, over.status)
	require.Contains(t, string(over.body), "rate_limit_exceeded")

	require.Zero(t, d.Seen("2"), "a waiting request has not run")
	cancels[0]() // frees a slot for the waiting request
	eventually(t, "the waiting request gets the slot", func() bool { return d.Seen("2") == 1 })
	require.Equal(t, 2, d.Stats().Running)
	cancels[1]()
	cancels[2]()
	eventually(t, "all slots are free", func() bool { st := d.Stats(); return st.InFlight == 0 && st.Running == 0 })
	st = d.Stats()
	require.EqualValues(t, 3, st.Cancelled)
	require.EqualValues(t, 1, st.Errors)
	require.Equal(t, 2, st.MaxRunning)
	require.Positive(t, st.BusySlotTime)
}

func TestClientThatLeavesTheQueueFreesItsPlace(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Slots: 1, Queue: 1, ServiceTime: forever})
	d := f.Device("a")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { post(ctx, c, d.URL()+"/v1/chat/completions", hello) })
	eventually(t, "one request runs", func() bool { return d.Stats().Running == 1 })
	waiting, leave := context.WithCancel(t.Context())
	wg.Go(func() { post(waiting, c, d.URL()+"/v1/chat/completions", hello) })
	eventually(t, "one request waits", func() bool { return d.Stats().Waiting == 1 })
	leave()
	eventually(t, "no request waits", func() bool { return d.Stats().Waiting == 0 })
	require.Equal(t, 1, d.Stats().Running)
	cancel()
	wg.Wait()
}

func TestFaults(t *testing.T) {
	f, c := start(t, Spec{ID: "a"})
	d := f.Device("a")
	c.Timeout = 0
	ask := func(path, body string) reply { return post(t.Context(), c, d.URL()+path, body) }

	d.SetFault(Fault{Kind: Fail, Status: 503, After: time.Millisecond, Times: 1})
	require.Equal(t, 503, ask("/v1/chat/completions", hello).status)
	require.Equal(t, 200, ask("/v1/chat/completions", hello).status, "the fault hits once only")

	d.SetFault(Fault{Kind: RateLimit, RetryAfter: 1500 * time.Millisecond})
	r := ask("/v1/chat/completions", hello)
	require.Equal(t, 429, r.status)
	require.Equal(t, "2", r.header.Get("Retry-After"))

	d.SetFault(Fault{Kind: Reset})
	r = ask("/v1/chat/completions", hello)
	require.Truef(t, errors.Is(r.err, syscall.ECONNRESET) || errors.Is(r.err, io.EOF), "%v", r.err)

	d.SetFault(Fault{Kind: BadJSON})
	r = ask("/v1/chat/completions", hello)
	require.Equal(t, 200, r.status)
	require.False(t, json.Valid(r.body))

	d.SetFault(Fault{Kind: Truncate})
	require.ErrorIs(t, ask("/v1/chat/completions", hello).err, io.ErrUnexpectedEOF)

	d.SetFault(Fault{Kind: Partial})
	var out completion
	ask("/v1/completions", `{"model":"m","prompt":["a","b","c"]}`).into(t, &out)
	require.Len(t, out.Choices, 1)
	out = completion{}
	ask("/v1/completions", `{"model":"m","prompt":["a"]}`).into(t, &out)
	require.Len(t, out.Choices, 1, "a request with one prompt is not batched")

	d.SetFault(Fault{Kind: Fail, Everything: true})
	require.Equal(t, 500, get(c, d.URL()+"/health").status)
	d.SetFault(Fault{Kind: Fail})
	require.Equal(t, 200, get(c, d.URL()+"/health").status)

	d.SetFault(Fault{Kind: Fail, Share: 0.5})
	hits := 0
	for range 200 {
		if ask("/v1/chat/completions", hello).status == 500 {
			hits++
		}
	}
	require.InDelta(t, 100, hits, 50)

	d.SetFault(Fault{Kind: Hang})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan reply)
	go func() { done <- post(ctx, c, d.URL()+"/v1/chat/completions", hello) }()
	eventually(t, "the request hangs", func() bool { return d.Stats().InFlight == 1 })
	require.Zero(t, d.Stats().Running)
	d.ClearFault()
	require.Equal(t, 200, ask("/v1/chat/completions", hello).status)
	select {
	case r := <-done:
		t.Fatalf("a hanging request was answered: %+v", r)
	default:
	}
	cancel()
	require.ErrorIs(t, (<-done).err, context.Canceled)
	eventually(t, "the device notices that the client left", func() bool { return d.Stats().InFlight == 0 })
}

func TestSlowMultipliesTheServiceTime(t *testing.T) {
	f, c := start(t, Spec{ID: "a", ServiceTime: time.Millisecond})
	d := f.Device("a")
	d.SetFault(Fault{Kind: Slow, Factor: 50})
	begin := time.Now()
	require.Equal(t, 200, post(t.Context(), c, d.URL()+"/v1/chat/completions", hello).status)
	require.GreaterOrEqual(t, time.Since(begin), 50*time.Millisecond)
	require.GreaterOrEqual(t, d.Stats().BusySlotTime, 50*time.Millisecond)
}

func TestStopAndStartKeepThePort(t *testing.T) {
	f, c := start(t, Spec{ID: "a", ServiceTime: forever})
	c.Timeout = 0
	d := f.Device("a")
	url := d.URL()
	dropped := make(chan reply)
	go func() { dropped <- post(t.Context(), c, url+"/v1/chat/completions", hello) }()
	eventually(t, "the request runs", func() bool { return d.Stats().Running == 1 })
	for range 3 {
		d.Stop()
		d.Stop()
		require.ErrorIs(t, get(c, url+"/health").err, syscall.ECONNREFUSED)
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", strings.TrimPrefix(url, "http://"))
		require.NoError(t, err, "a listener that asks for this port can have it")
		require.NoError(t, ln.Close())
		require.NoError(t, d.Start())
		require.NoError(t, d.Start())
		require.Equal(t, url, d.URL())
		require.Equal(t, 200, get(c, url+"/health").status)
	}
	require.Error(t, (<-dropped).err)
	st := d.Stats()
	require.Zero(t, st.Running+st.InFlight, "Stop ends running requests")
	f.Close()
	require.ErrorContains(t, d.Start(), "closed")
}

func TestDroppedRequestsAreNeverAnswered(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Slots: 4, ServiceTime: forever})
	c.Timeout = 0
	d := f.Device("a")
	for range 50 {
		replies := make(chan reply, 8) // four run, four wait
		for range 8 {
			go func() { replies <- post(t.Context(), c, d.URL()+"/v1/chat/completions", hello) }()
		}
		eventually(t, "all requests have arrived", func() bool { st := d.Stats(); return st.Running == 4 && st.Waiting == 4 })
		d.Stop()
		for range 8 {
			require.Error(t, (<-replies).err)
		}
		require.NoError(t, d.Start())
	}
}

func TestContextClosesTheFleet(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f, err := Start(ctx, Default())
	require.NoError(t, err)
	address := strings.TrimPrefix(f.Devices()[0].URL(), "http://")
	cancel()
	eventually(t, "the port refuses connections", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	f.Close()
}

func TestCloseUnderLoadEndsEverything(t *testing.T) {
	f, c := start(t, Mixed12()...)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			d := f.Devices()[i%12]
			answered := true
			for answered {
				answered = post(t.Context(), c, d.URL()+"/v1/chat/completions", hello).err == nil
			}
		})
	}
	eventually(t, "every device has received requests", func() bool {
		for _, d := range f.Devices() {
			if d.Stats().Requests == 0 {
				return false
			}
		}
		return true
	})
	f.Close()
	f.Close()
	wg.Wait()
	for _, d := range f.Devices() {
		require.Zero(t, d.Stats().InFlight)
	}
}

func TestBadSpecs(t *testing.T) {
	for name, specs := range map[string][]Spec{
		"no devices": nil, "no id": {{}}, "duplicate id": {{ID: "a"}, {ID: "a"}},
		"unknown distribution": {{ID: "a", Distribution: "pareto"}}, "negative time": {{ID: "a", ServiceTime: -1}},
	} {
		_, err := Start(t.Context(), specs)
		require.Error(t, err, name)
	}
}

func TestConcurrentKeysAreCounted(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Slots: 8})
	d := f.Device("a")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				key := fmt.Sprintf("k-%d", i)
				post(t.Context(), c, d.URL()+"/v1/chat/completions", hello, "X-Request-Id", key, "Idempotency-Key", key, "Idempotency-Key", fmt.Sprint("w-", w))
			}
		})
	}
	wg.Wait()
	for i := range 50 {
		require.Equal(t, 8, d.Seen(fmt.Sprintf("k-%d", i)))
	}
	require.Equal(t, 50, d.Seen("w-3"))
	require.EqualValues(t, 400, d.Stats().Succeeded)
	require.LessOrEqual(t, d.Stats().MaxRunning, 8)
}

func BenchmarkChat(b *testing.B) {
	f, c := start(b, Spec{ID: "a", Slots: 64})
	url := f.Device("a").URL() + "/v1/chat/completions"
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 50) + `"}],"max_tokens":64}`
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if r := post(context.Background(), c, url, body, "X-Request-Id", "t"); r.status != 200 {
				b.Fatalf("%+v", r)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}
