package test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// others are the arguments of batchyard serve for all stages but the workers.
var others = slices.DeleteFunc(slices.Clone(stages), func(s string) bool { return s == "workers" })

// TestWorkerKilledOften kills the worker with SIGKILL again and again. What it had at devices is asked for again; that is
// at most one request for each slot and death. Beyond that hardly any request reaches a device twice, and each task has
// one result.
func TestWorkerKilledOften(t *testing.T) {
	t.Parallel()
	const slots = 4
	kills, n := 2, 2000
	if harness.Long() {
		kills, n = 20, 20_000
	}
	in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(nil))
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: slots / 2, ServiceTime: 10 * time.Millisecond, Distribution: fleet.Exponential, Seed: 1},
		fleet.Spec{ID: "b", Slots: slots / 2, ServiceTime: 10 * time.Millisecond, Distribution: fleet.Exponential, Seed: 2})
	api := in.Process(t, append([]string{"serve"}, others...)...).API()
	worker := in.Process(t, "serve", "workers")
	l := submit(t, api, "k", "", n)
	for i := range kills {
		awaitSomeEnded(t, in, (i+1)*n/(kills+1), n)
		worker.Kill(t)
		worker = worker.Restart(t)
	}
	ids := l.wait(t)
	in.Await(t, ids, 2*harness.Patience+time.Duration(n/50)*time.Second)
	in.CheckPromises(t, ids, nil)
	twice, extra := 0, 0
	for _, id := range ids {
		seen := 0
		for _, d := range f.Devices() {
			seen += d.Seen(id)
		}
		require.Positive(t, seen, id)
		if seen > 1 {
			twice, extra = twice+1, extra+seen-1
		}
	}
	t.Logf("%d of %d tasks reached a device more than once, with %d extra requests, in %d deaths of a worker with %d slots", twice, n, extra, kills, slots)
	if harness.Long() { // a busy machine that kills twice in two seconds says nothing about a share
		require.LessOrEqual(t, extra, n/100)
	}
	require.Equal(t, n, harness.SQL[int](t, in, "SELECT count(*) FROM results"))
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// resident returns the memory of a process, in bytes.
func resident(t testing.TB, p *harness.Process) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Skip("only Linux says how much memory a process has")
	}
	m := residentLine.FindSubmatch(text)
	require.NotNil(t, m)
	kib, err := strconv.ParseFloat(string(m[1]), 64)
	require.NoError(t, err)
	return kib * 1024
}

// BenchmarkWorkerMemory is the memory of a worker with 1,000 requests of 100 kB at devices, as it is once all are there,
// and after BATCHYARD_BENCH_MINUTES (0.5) more minutes.
func BenchmarkWorkerMemory(b *testing.B) {
	const requests, size = 1000, 100_000
	minutes, err := strconv.ParseFloat(os.Getenv("BATCHYARD_BENCH_MINUTES"), 64)
	if err != nil {
		minutes = 0.5
	}
	in := harness.Install(b, harness.Get(b, harness.Shared), map[string]any{"workers.request_timeout": "1h", "devices.lease_ttl": "1m", "workers.max_bytes": "512MiB"})
	var specs []fleet.Spec
	for i := range 20 { // in all partitions: each has its share of workers.max_bytes
		specs = append(specs, fleet.Spec{ID: fmt.Sprint("d-", i), Slots: requests / 20, ServiceTime: time.Hour})
	}
	f := in.Fleet(b, specs...)
	api := in.Process(b, append([]string{"serve"}, others...)...).API()
	worker := in.Process(b, "serve", "workers")
	idle := resident(b, worker)
	text := strings.Repeat("x", size)
	for b.Loop() {
		for part := range 50 {
			var tasks []*task.Task
			for i := range requests / 50 {
				tk := harness.Chat(fmt.Sprintf("large-%d-%d", part, i))
				tk.Input = task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":%q}]}`, text))
				tasks = append(tasks, tk)
			}
			api.Submit(b, tasks...)
		}
		running := 0
		b.Cleanup(func() { b.Logf("%d are at devices", running) })
		harness.Eventually(b, 3*harness.Patience, "all are at devices", func() bool {
			running = 0
			for _, d := range f.Devices() {
				running += d.Stats().Running
			}
			return running == requests
		})
		full := resident(b, worker)
		most := full
		look := time.NewTicker(time.Second)
		for range int(minutes * 60) {
			<-look.C
			most = max(most, resident(b, worker))
		}
		look.Stop()
		b.ReportMetric(idle/1e6, "MB-idle")
		b.ReportMetric(full/1e6, "MB-full")
		b.ReportMetric(most/1e6, "MB-most-later")
		b.ReportMetric(resident(b, worker)/1e6, "MB-at-the-end")
	}
}

// BenchmarkBatchingAtLightLoad runs chats one after the other, with the batcher as it is and with one that waits for
// nothing, in turns. It reports the p99 of the time from the assignment to the request, and by how much batching adds to
// it: at most 2 ms.
func BenchmarkBatchingAtLightLoad(b *testing.B) {
	const rounds, each = 4, 50
	start := func(with map[string]any) func(round int) []float64 {
		in := harness.Install(b, harness.Get(b, harness.Shared), with)
		in.Fleet(b, fleet.Spec{ID: "a", Slots: 4, ServiceTime: 5 * time.Millisecond})
		api := in.Process(b, "serve").API()
		return func(round int) (took []float64) {
			for i := range each {
				ids := api.Submit(b, harness.Chat(fmt.Sprintf("light-%d-%d", round, i)))
				in.Await(b, ids, harness.Patience)
			}
			type row struct{ Took float64 }
			for _, r := range harness.Rows[row](b, in, `SELECT extract(epoch FROM started_at - assigned_at)::float8 * 1000 AS took FROM tasks WHERE task_id LIKE $1`, fmt.Sprintf("light-%d-%%", round)) {
				took = append(took, r.Took)
			}
			return took
		}
	}
	waiting := start(nil)
	bare := start(map[string]any{"batcher.single.max_wait": "0s", "batcher.single.max_count": 1})
	for b.Loop() {
		var with, without []float64
		for round := range rounds {
			with, without = append(with, waiting(round)...), append(without, bare(round)...)
		}
		p99, alone := quantile(with, 0.99), quantile(without, 0.99)
		b.ReportMetric(p99, "ms-p99")
		b.ReportMetric(alone, "ms-p99-unbatched")
		b.ReportMetric(quantile(with, 0.5)-quantile(without, 0.5), "ms-added-p50")
		b.ReportMetric(p99-alone, "ms-added-p99")
	}
}

func quantile(v []float64, q float64) float64 {
	slices.Sort(v)
	return v[int(q*float64(len(v)-1))]
}

// BenchmarkBatchedEmbeddings embeds texts in batches of 64 and one by one, on a device that takes 4 ms for a request and
// 0.1 ms for each further text in it. The first should be at least five times as fast.
func BenchmarkBatchedEmbeddings(b *testing.B) {
	const texts = 4000
	rate := func(batch int) float64 {
		in := harness.Install(b, harness.Get(b, harness.Shared), map[string]any{"batcher.batched.max_count": batch, "workers.max_batched_tasks": batch})
		in.Fleet(b, fleet.Spec{ID: "a", Slots: 2, EmbedTime: 4 * time.Millisecond, ServiceTime: time.Millisecond, BatchItemTime: 100 * time.Microsecond})
		api := in.Process(b, "serve").API()
		var all []*task.Task
		for i := range texts {
			all = append(all, harness.Embedding(fmt.Sprint("embed-", i)))
		}
		began := time.Now()
		var ids []string
		for part := range slices.Chunk(all, 1000) {
			ids = append(ids, api.Submit(b, part...)...)
		}
		in.Await(b, ids, 5*harness.Patience)
		return texts / time.Since(began).Seconds()
	}
	for b.Loop() {
		batched, single := rate(64), rate(1)
		b.ReportMetric(batched, "texts/s-batched")
		b.ReportMetric(single, "texts/s-unbatched")
		b.ReportMetric(batched/single, "ratio")
	}
}
