package engines

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// BenchmarkThroughput compares Batchyard with a client that keeps the engine as busy as it can with the same concurrency,
// in alternating pairs, so that a machine that has other things to do slows down both. ratio is the median of how many
// requests a second Batchyard gets from the engine, as a share of what the client gets. It should be at least 0.95.
func BenchmarkThroughput(b *testing.B) {
	const (
		pairs    = 5
		requests = 32
		tokens   = 24
	)
	engine := startLlama(b, "smollm2", "")
	in := harness.Local(b, nil)
	api := in.Dev(b, "--listen", "127.0.0.1:0", "--device", engine.device(b, "")).API()
	round := 0
	// No two prompts are alike, as the engine remembers them, and all are as long, as are the answers.
	input := func(i int) string {
		return fmt.Sprintf(`{"messages":[{"role":"user","content":"%03d %03d: say something."}],"max_tokens":%d,"ignore_eos":true}`, round, i, tokens)
	}
	bare := func() time.Duration {
		round++
		began := time.Now()
		var wg sync.WaitGroup
		next := make(chan int)
		for range slots {
			wg.Go(func() {
				for i := range next {
					status, answer, err := engine.ask(context.Background(), http.MethodPost, task.EndpointChat, input(i))
					if err != nil || status != http.StatusOK {
						b.Errorf("the engine answers %d: %s %v", status, answer, err)
					}
				}
			})
		}
		for i := range requests {
			next <- i
		}
		close(next)
		wg.Wait()
		return time.Since(began)
	}
	through := func() time.Duration {
		round++
		var tasks []*task.Task
		for i := range requests {
			tasks = append(tasks, newTask(fmt.Sprintf("round-%d-%d", round, i), "smollm2", task.EndpointChat, "%s", input(i)))
		}
		began := time.Now()
		ids := api.Submit(b, tasks...)
		in.Await(b, ids, within)
		last := harness.SQL[time.Time](b, in, "SELECT max(finished_at) FROM results WHERE task_id = ANY($1) AND state = 'SUCCESS' HAVING count(*) = $2", ids, requests)
		return last.Sub(began)
	}
	bare()
	through() // neither is measured cold
	for b.Loop() {
		var ratios []float64
		for range pairs {
			alone, here := bare(), through()
			ratios = append(ratios, alone.Seconds()/here.Seconds())
			b.Logf("%.1f requests/s alone, %.1f through Batchyard", requests/alone.Seconds(), requests/here.Seconds())
		}
		slices.Sort(ratios)
		b.ReportMetric(ratios[pairs/2], "ratio")
		require.GreaterOrEqual(b, ratios[pairs/2], 0.95)
	}
}
