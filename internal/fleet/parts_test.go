package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

func TestFactorsHaveTheSpecifiedMeanAndCV(t *testing.T) {
	for _, test := range []struct {
		spec      Spec
		cv, delta float64
	}{
		{Spec{Distribution: Fixed}, 0, 1e-9},
		{Spec{Distribution: Exponential, Seed: 7}, 1, 0.03},
		{Spec{Distribution: Lognormal, CV: 0.5, Seed: 7}, 0.5, 0.03},
		{Spec{Distribution: Lognormal, CV: 2, Seed: 7}, 2, 0.15},
	} {
		const n = 200_000
		var sum, squares float64
		for i := range uint64(n) {
			x := test.spec.factor(i)
			require.False(t, x < 0 || math.IsNaN(x) || x > maxFactor)
			sum += x
			squares += x * x
		}
		mean := sum / n
		require.InDelta(t, 1, mean, 0.02, "mean of %+v", test.spec)
		require.InDelta(t, test.cv, math.Sqrt(max(0, squares/n-mean*mean)), max(test.delta, 1e-6), "cv of %+v", test.spec)
		first := test.spec.factor(42)
		require.Equal(t, first, test.spec.factor(42))
	}
}

func TestServiceTimeAddsUp(t *testing.T) {
	d := &Device{spec: Spec{ServiceTime: time.Second, EmbedTime: time.Minute, BatchItemTime: time.Hour, PerPromptToken: time.Microsecond, PerOutputToken: time.Millisecond}}
	r := &request{kind: completions, n: 1, maxTokens: 5, items: []item{{tokens: 2}, {tokens: 1}}}
	require.Equal(t, time.Hour+time.Second+3*time.Microsecond+10*time.Millisecond, d.serviceTime(r))
	r.kind = embeddings
	require.Equal(t, time.Hour+time.Minute+3*time.Microsecond, d.serviceTime(r))
}

func TestMixed12MatchesTheRoutingExperiments(t *testing.T) {
	slots, rate := 0, 0.0
	for _, s := range Mixed12() {
		slots += s.Slots
		rate += float64(s.Slots) / s.ServiceTime.Seconds()
	}
	require.Len(t, Mixed12(), 12)
	require.Equal(t, 21, slots)
	require.InDelta(t, 345.83, rate, 0.01)
}

func TestSeenForgetsOnlyTheOldest(t *testing.T) {
	s := newSeen(100)
	for round := range 3 {
		for i := range 100 {
			s.add(fmt.Sprint("k", i))
		}
		require.Equal(t, round+1, s.count("k7"))
	}
	for i := range 1000 {
		s.add(fmt.Sprint("n", i))
	}
	require.Zero(t, s.count("k7"))
	require.Equal(t, 1, s.count("n900"))
	require.LessOrEqual(t, len(s.young)+len(s.old), 200)
	newSeen(0).add("x")
}

// TestSlotsAgainstModel lets requests arrive, finish and leave in random order and
// compares with a plain list: slots are never exceeded, granted in order, and none
// is lost.
func TestSlotsAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) {
			limit, bound := rapid.IntRange(1, 4).Draw(rt, "limit"), rapid.IntRange(0, 5).Draw(rt, "bound")
			s := newSlots(limit, bound)
			type client struct {
				cancel context.CancelFunc
				got    chan error
			}
			var running, waiting []*client
			checkModel := func() {
				synctest.Wait()
				for len(running) < limit && len(waiting) > 0 {
					require.NoError(rt, <-waiting[0].got, "the slot goes to the first in the queue")
					running, waiting = append(running, waiting[0]), waiting[1:]
				}
				var st Stats
				s.fill(&st)
				require.Equal(rt, len(running), st.Running)
				require.Equal(rt, len(waiting), st.Waiting)
			}
			drop := func(list []*client, i int) []*client { return append(list[:i:i], list[i+1:]...) }
			for range rapid.IntRange(1, 40).Draw(rt, "steps") {
				switch rapid.IntRange(0, 3).Draw(rt, "step") {
				case 0, 1:
					ctx, cancel := context.WithCancel(context.Background())
					c := &client{cancel: cancel, got: make(chan error, 1)}
					full := len(running) == limit && len(waiting) == bound
					go func() { c.got <- s.acquire(ctx) }()
					if full {
						require.ErrorIs(rt, <-c.got, errQueueFull)
						cancel()
					} else {
						waiting = append(waiting, c)
					}
				case 2:
					if len(running) > 0 {
						i := rapid.IntRange(0, len(running)-1).Draw(rt, "who")
						running[i].cancel()
						running = drop(running, i)
						s.release()
					}
				case 3:
					if len(waiting) > 0 {
						i := rapid.IntRange(0, len(waiting)-1).Draw(rt, "who")
						waiting[i].cancel()
						require.ErrorIs(rt, <-waiting[i].got, context.Canceled)
						waiting = drop(waiting, i)
					}
				}
				checkModel()
			}
			for _, c := range waiting {
				c.cancel()
			}
			for _, c := range running {
				c.cancel()
			}
			synctest.Wait()
		})
	})
}

// A client leaves, and its request is granted a slot before it notices. The slot
// must not be lost.
func TestSlotGrantedToLeavingClientIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, 1)
		require.NoError(t, s.acquire(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error)
		go func() { got <- s.acquire(ctx) }()
		synctest.Wait()
		s.mu.Lock() // the leaving request waits for the lock, and then has been granted the slot
		cancel()
		s.free()
		s.mu.Unlock()
		require.ErrorIs(t, <-got, context.Canceled)
		require.Zero(t, s.running)
		require.Zero(t, s.waiting)
	})
}

func FuzzParse(f *testing.F) {
	for _, body := range []string{
		hello, `{"model":"m","prompt":["a",[1,2],"\u00e9"],"n":2,"max_tokens":3}`, `{"model":"m","input":[1,2]}`,
		`{"input":[{"type":"text","text":"x"}]}`, `{"model":"m","input":"x","dimensions":3,"encoding_format":"base64"}`,
		`{"mod\u0065l":"m","model":null,"input":""}`, `[[[[`, `{"a":{"b":[{"c":"}\\\""}]},"model":"x"}`, ` {} `, `{"model":"m","messages":[{"role":"user","content":[{"text":"x"}]}]}`,
	} {
		for k := range 5 {
			f.Add(k, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which int, body []byte) {
		var r request
		k := kind(uint(which) % 5)
		fuzzing.Bound(t, len(body), func() { _ = new(request).parse(k, body) })
		if err := r.parse(k, body); err != nil {
			require.NotEmpty(t, err.message)
			return
		}
		require.True(t, json.Valid(body))
		require.NotEmpty(t, r.items)
		require.LessOrEqual(t, len(r.items), maxItems)
		if len(r.items) <= 64 && r.n <= 4 && r.dimensions <= 16 {
			answer := r.answer(nil, len(r.items), 0, max(r.dimensions, 1))
			require.Truef(t, json.Valid(answer), "%s", answer)
		}
	})
}

// FuzzWalk compares eachField and eachElement with encoding/json.
func FuzzWalk(f *testing.F) {
	for _, body := range []string{hello, ` {"a" : 1 , "a":[true , {"x":"]"} ] , "\u0062":"\\\"" } `, `[1, [2,3] ,"x",{}, null]`, `{}`, `[]`, `[ ]`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return
		}
		i := space(body, 0)
		fuzzing.Bound(t, len(body), func() {
			eachField(body[i:], func(_, _ []byte) bool { return true })
			eachElement(body[i:], func([]byte) bool { return true })
		})
		switch body[i] {
		case '{':
			want := map[string]json.RawMessage{}
			require.NoError(t, json.Unmarshal(body, &want))
			got := map[string]json.RawMessage{}
			eachField(body[i:], func(key, value []byte) bool {
				// encoding/json replaces invalid UTF-8 in keys: do the same before comparing.
				quoted, err := json.Marshal(string(key))
				require.NoError(t, err)
				var name string
				require.NoError(t, json.Unmarshal(quoted, &name))
				got[name] = value
				return true
			})
			require.Equal(t, want, got)
		case '[':
			var want, got []json.RawMessage
			require.NoError(t, json.Unmarshal(body, &want))
			eachElement(body[i:], func(e []byte) bool { got = append(got, e); return true })
			require.Len(t, got, len(want))
			for j := range want {
				require.Equal(t, string(want[j]), string(got[j]))
			}
		}
	})
}
