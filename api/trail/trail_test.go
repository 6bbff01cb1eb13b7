package trail

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// rows is a log that may be down.
type rows struct {
	mu      sync.Mutex
	down    bool
	events  []task.Event
	details []map[string]any
}

func (r *rows) record(_ context.Context, e task.Event, detail map[string]any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return errors.New("Kafka does not answer")
	}
	r.events, r.details = append(r.events, e), append(r.details, detail)
	return nil
}

// written returns what is in the log.
func (r *rows) written() ([]task.Event, []map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events, r.details
}

func (r *rows) count() int {
	events, _ := r.written()
	return len(events)
}

// requests is how many requests the rows stand for.
func (r *rows) requests() (n int) {
	for _, d := range r.details {
		more, counted := d["requests"].(int)
		if !counted {
			more = 1
		}
		n += more
	}
	return n
}

func read(actor, id string) Access {
	return Access{Operation: "get-task", Status: 200, Tenant: "acme", Origin: task.Origin{Actor: actor, Addr: "203.0.113.7:1"}, ID: id}
}

func TestARowAtOnceAndOneAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log rows
		trail := New(log.record)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go trail.Run(ctx)
		for i := range 100 {
			trail.Answered(ctx, read("acme", fmt.Sprint("t", i)))
			if i == 0 {
				require.Equal(t, 1, log.count(), "at once")
			}
		}
		require.Equal(t, 1, log.count())
		<-time.After(minute + time.Second)
		synctest.Wait()
		require.Equal(t, 2, log.count())
		_, details := log.written()
		require.Equal(t, 99, details[1]["requests"])
		require.Len(t, details[1]["ids"], maxIDs)
		trail.Answered(ctx, read("acme", "again"))
		require.Equal(t, 3, log.count(), "a new minute")
		<-time.After(minute)
		synctest.Wait()
		require.Equal(t, 3, log.count(), "nothing was counted")
	})
}

// No request is left out, whatever happens to Kafka and however many senders there are.
func TestEveryRequestIsInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log rows
		trail := New(log.record)
		n := 0
		for round := range 4 {
			log.down = round%2 == 1
			for i := range maxKeys {
				for range 1 + i%3 {
					trail.Answered(t.Context(), read(fmt.Sprint("actor-", round, "-", i+i%2*round*maxKeys), "t"))
					n++
				}
			}
			trail.Flush(t.Context())
			require.LessOrEqual(t, len(trail.counts), maxKeys+1)
		}
		log.down = false
		require.Zero(t, trail.Flush(t.Context()))
		require.Equal(t, n, log.requests())
	})
}
