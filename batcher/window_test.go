package batcher

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// fakeRecord stands in for a *stream.Record.
type fakeRecord struct{ lost, done bool }

func (r *fakeRecord) Done()       { r.done = true }
func (r *fakeRecord) Lost() bool  { return r.lost }
func (r *fakeRecord) Again(error) { r.lost = true }

func testConfig() Config {
	return Config{
		Batched: Thresholds{MaxCount: 5, MaxBytes: 100, MaxTokens: 1000, MaxWait: 50 * time.Millisecond}, Single: Single{MaxCount: 3, MaxBytes: 60, MaxTokens: 1000, MaxWait: 5 * time.Millisecond},
		Rules:       []Rule{{Model: "Big", MaxCount: 2, MaxBytes: 1000, MaxTokens: 1000, MaxWait: time.Second}, {Endpoint: task.EndpointModerations, MaxCount: 4, MaxBytes: 1000, MaxTokens: 1000, MaxWait: time.Minute}},
		MaxInFlight: 4096, MaxBytes: 128 << 20, DrainTimeout: 10 * time.Second,
	}
}

// fixed are thresholds that do not change.
func fixed(cfg Config) *atomic.Pointer[Config] {
	p := &atomic.Pointer[Config]{}
	p.Store(&cfg)
	return p
}

func newEntry(id, device, endpoint, model string, size int) entry {
	return entry{task.Assignment{
		Task:   task.Task{ID: id, Endpoint: endpoint, Model: model, Input: make(task.Input, size)},
		Device: task.DeviceRef{ID: device, Slots: 1}, Attempt: 1,
	}, records.NewAck(&fakeRecord{}, 1)}
}

// closedBatch is a batch that left the window.
type closedBatch struct {
	ids []string
	why Reason
}

// gather collects the batches that leave a window.
func gather(out *[]closedBatch) func(*openBatch, Reason) {
	return func(o *openBatch, why Reason) {
		l := closedBatch{why: why}
		for i := range o.entries {
			l.ids = append(l.ids, o.entries[i].Task.ID)
		}
		*out = append(*out, l)
	}
}

func TestThresholds(t *testing.T) {
	cfg := testConfig()
	require.Equal(t, 5, cfg.For(task.EndpointEmbeddings, "m").MaxCount)
	require.Equal(t, 3, cfg.For(task.EndpointChat, "m").MaxCount)
	require.Equal(t, 2, cfg.For(task.EndpointChat, "bIG").MaxCount, "the first rule that matches")
	require.Equal(t, 4, cfg.For(task.EndpointModerations, "m").MaxCount)
	require.Equal(t, 2, cfg.For(task.EndpointModerations, "big").MaxCount)
}

func TestBatchesCloseByCountAndBytes(t *testing.T) {
	w := newWindow(fixed(testConfig()))
	var out []closedBatch
	now := time.Now()
	add := func(id string, size int) { w.add(newEntry(id, "d", task.EndpointChat, "m", size), now, gather(&out)) }
	add("a", 10)
	add("b", 10)
	require.Empty(t, out)
	add("c", 10)
	require.Equal(t, []closedBatch{{[]string{"a", "b", "c"}, ReasonCount}}, out)
	add("d", 50)
	add("e", 20) // would be too many bytes: the open batch leaves first
	require.Equal(t, closedBatch{[]string{"d"}, ReasonBytes}, out[1])
	add("f", 40)
	require.Equal(t, closedBatch{[]string{"e", "f"}, ReasonBytes}, out[2])
	add("giant", 1000)
	require.Equal(t, closedBatch{[]string{"giant"}, ReasonBytes}, out[3], "a giant goes alone")
	require.Zero(t, w.tasks)
	require.True(t, w.nextDue().IsZero())
}

func TestBatchesCloseByTokens(t *testing.T) {
	cfg := testConfig()
	cfg.Batched.MaxTokens = 22
	w := newWindow(fixed(cfg))
	var out []closedBatch
	add := func(id string, size int) {
		w.add(newEntry(id, "d", task.EndpointEmbeddings, "m", size), time.Now(), gather(&out))
	}
	add("a", 40)
	add("b", 44)
	require.Empty(t, out, "21 tokens")
	add("c", 10) // would be 24
	require.Equal(t, []closedBatch{{[]string{"a", "b"}, ReasonTokens}}, out)
	add("d", 78)
	require.Equal(t, closedBatch{[]string{"c", "d"}, ReasonTokens}, out[1], "22 are as many as allowed")
	require.Zero(t, w.tasks)
}

func TestBatchesFitIntoTheirTopic(t *testing.T) {
	cfg := testConfig()
	cfg.Single = Single{MaxCount: 4096, MaxBytes: 12 << 20, MaxTokens: 12 << 20, MaxWait: time.Minute}
	w := newWindow(fixed(cfg))
	largest := 0
	closed := func(o *openBatch, _ Reason) {
		b := task.Batch{}
		for i := range o.entries {
			b.Assignments = append(b.Assignments, o.entries[i].Assignment)
		}
		frame, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{b})
		require.NoError(t, err)
		largest = max(largest, len(frame))
	}
	labels := map[string]string{}
	for i := range task.MaxLabels {
		labels[fmt.Sprintf("%064d", i)] = strings.Repeat("x", 512)
	}
	for i := range 4096 {
		e := newEntry(fmt.Sprint(i), "d", task.EndpointChat, "m", 3000)
		e.Task.Labels = labels
		w.add(e, time.Now(), closed)
	}
	w.closeAll(closed)
	require.Positive(t, largest)
	require.Less(t, largest, 16<<20)
}

func TestBatchesAreSeparateByDeviceEndpointAndModel(t *testing.T) {
	w := newWindow(fixed(testConfig()))
	var out []closedBatch
	for i, e := range []entry{
		newEntry("a", "d1", task.EndpointChat, "m", 1), newEntry("b", "d2", task.EndpointChat, "m", 1),
		newEntry("c", "d1", task.EndpointChat, "n", 1), newEntry("d", "d1", task.EndpointResponses, "m", 1),
	} {
		w.add(e, time.Now(), gather(&out))
		require.Len(t, w.batches, i+1)
	}
	w.closeDevice("d1", 4, gather(&out))
	require.Empty(t, out, "it has something else to do")
	w.closeDevice("d1", 3, gather(&out))
	require.Len(t, out, 3)
	require.Equal(t, 1, w.tasks)
	w.closeDevice("d3", 0, gather(&out))
	w.closeAll(gather(&out))
	require.Equal(t, closedBatch{[]string{"b"}, ReasonDrain}, out[3])
	require.Empty(t, w.byDevice)
}

func TestAnIdleDeviceDoesNotWait(t *testing.T) {
	w := newWindow(fixed(testConfig()))
	var out []closedBatch
	busy, idle := newEntry("busy", "d1", task.EndpointChat, "m", 1), newEntry("idle", "d2", task.EndpointChat, "m", 1)
	idle.IdleSlots = 1
	w.add(busy, time.Now(), gather(&out))
	w.add(idle, time.Now(), gather(&out))
	w.add(newEntry("with it", "d2", task.EndpointChat, "m", 1), time.Now(), gather(&out))
	w.closeIdle(gather(&out))
	require.Equal(t, []closedBatch{{[]string{"idle", "with it"}, ReasonIdle}}, out)
}

func TestBatchesCloseWhenTheOldestTaskHasWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(fixed(testConfig()))
		var out []closedBatch
		start := time.Now()
		w.add(newEntry("each", "d", task.EndpointChat, "m", 1), start, gather(&out))
		w.add(newEntry("merged", "d", task.EndpointEmbeddings, "m", 1), start, gather(&out))
		for n, after := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
			require.Equal(t, after, w.nextDue().Sub(start))
			time.Sleep(time.Until(w.nextDue()) - 1)                                                                  //nolint:forbidigo // virtual time
			w.add(newEntry(fmt.Sprint("later-", n), "d", task.EndpointEmbeddings, "m", 1), time.Now(), gather(&out)) // does not delay it
			w.closeDue(time.Now(), gather(&out))
			require.Len(t, out, n, "not early")
			time.Sleep(time.Nanosecond) //nolint:forbidigo // virtual time
			w.closeDue(time.Now(), gather(&out))
			require.Len(t, out, n+1, "not late")
		}
		require.Equal(t, []string{"each"}, out[0].ids)
		require.Equal(t, ReasonWait, out[0].why)
		require.Equal(t, []string{"merged", "later-0", "later-1"}, out[1].ids)
		require.Equal(t, ReasonWait, out[1].why)
	})
}

func TestLostEntriesAreDropped(t *testing.T) {
	w := newWindow(fixed(testConfig()))
	var out []closedBatch
	var dropped []string
	add := func(id, device string, lost bool) {
		e := newEntry(id, device, task.EndpointEmbeddings, "m", 30)
		e.ack.Record = &fakeRecord{lost: lost}
		w.add(e, time.Now(), gather(&out))
	}
	add("stays", "d1", false)
	add("lost", "d1", true)
	add("lost too", "d1", true)
	add("all lost", "d2", true)
	w.dropLost(func(e *entry) { dropped = append(dropped, e.Task.ID) })
	slices.Sort(dropped)
	require.Equal(t, []string{"all lost", "lost", "lost too"}, dropped)
	require.Equal(t, 1, w.tasks)
	require.Len(t, w.batches, 1)
	add("fits again", "d1", false)
	require.Empty(t, out, "bytes of lost entries do not count")
	w.closeAll(gather(&out))
	require.Equal(t, []string{"stays", "fits again"}, out[0].ids)
}

// In any order of operations, every assignment leaves exactly once, in a batch of its key, within
// the thresholds, and for a reason that holds.
func TestWindowAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := testConfig()
		cfg.Batched.MaxTokens = rapid.IntRange(5, 30).Draw(t, "tokens")
		w := newWindow(fixed(cfg))
		now := time.Unix(1_000_000, 0)
		type entryOf struct {
			entry
			at time.Time
		}
		inside := map[string]entryOf{} // by task id
		n := 0
		closed := func(o *openBatch, why Reason) {
			require.NotEmpty(t, o.entries)
			var bytes int64
			oldest := now
			for i := range o.entries {
				e := &o.entries[i]
				in, ok := inside[e.Task.ID]
				require.True(t, ok, "%s left twice", e.Task.ID)
				delete(inside, e.Task.ID)
				require.Equal(t, batchKey{e.Device.ID, e.Task.Endpoint, e.Task.Model}, o.key)
				bytes += int64(len(e.Task.Input))
				if in.at.Before(oldest) {
					oldest = in.at
				}
			}
			limits := cfg.For(o.key.endpoint, o.key.model)
			require.Equal(t, bytes, o.bytes)
			require.LessOrEqual(t, len(o.entries), limits.MaxCount)
			require.True(t, bytes <= limits.MaxBytes || len(o.entries) == 1)
			require.True(t, tokensOf(bytes) <= int64(limits.MaxTokens) || len(o.entries) == 1)
			require.True(t, why == ReasonDrain || why == ReasonCount && len(o.entries) == limits.MaxCount || why == ReasonBytes || why == ReasonTokens ||
				why == ReasonWait && !o.since.Add(limits.MaxWait).After(now) || why == ReasonIdle, "%s", why)
			require.False(t, oldest.Before(o.since), "it is as old as its oldest task")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n++
				e := newEntry(fmt.Sprint(n), rapid.SampledFrom([]string{"d1", "d2"}).Draw(t, "device"),
					rapid.SampledFrom([]string{task.EndpointChat, task.EndpointEmbeddings}).Draw(t, "endpoint"),
					rapid.SampledFrom([]string{"m", "big"}).Draw(t, "model"), rapid.IntRange(0, 120).Draw(t, "size"))
				e.IdleSlots = rapid.IntRange(-20, 1).Draw(t, "idle")
				inside[e.Task.ID] = entryOf{e, now}
				w.add(e, now, closed)
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 60).Draw(t, "ms")) * time.Millisecond)
				w.closeDue(now, closed)
				for _, e := range inside {
					require.True(t, e.at.Add(cfg.For(e.Task.Endpoint, e.Task.Model).MaxWait).After(now), "it waits too long")
				}
			},
			"idle": func(*rapid.T) {
				w.closeIdle(closed)
				for _, e := range inside {
					require.LessOrEqual(t, e.IdleSlots, 0)
				}
			},
			"device idle": func(t *rapid.T) { w.closeDevice("d1", rapid.IntRange(0, 6).Draw(t, "used"), closed) },
			"lost": func(t *rapid.T) {
				for _, e := range inside {
					e.ack.Record.(*fakeRecord).lost = len(e.Task.ID)%2 == 0
				}
				w.dropLost(func(e *entry) {
					require.Contains(t, inside, e.Task.ID)
					delete(inside, e.Task.ID)
				})
			},
			"": func(*rapid.T) {
				require.Equal(t, len(inside), w.tasks)
				inBatches, byDevice := 0, 0
				for _, b := range w.batches {
					inBatches += len(b.entries)
					require.Same(t, b, w.times[b.index])
					require.Contains(t, w.byDevice[b.key.device], b)
				}
				for _, of := range w.byDevice {
					byDevice += len(of)
				}
				require.Equal(t, len(inside), inBatches)
				require.Len(t, w.times, len(w.batches))
				require.Equal(t, len(w.batches), byDevice)
			},
		})
		w.closeAll(closed)
		require.Empty(t, inside)
		require.Empty(t, w.batches)
		require.Empty(t, w.byDevice)
	})
}
