package workers

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

func testConfig() Config {
	return Config{
		MaxInFlight: 1024, MaxBytes: 64 << 20, RequestTimeout: 10 * time.Second, MaxAnswer: 1 << 20, MaxBatchedTasks: 8, MaxAttempts: 3, LocalRetries: 1,
		BackoffMin: 10 * time.Millisecond, BackoffMax: 200 * time.Millisecond, RetryBudget: 0.2, Fallback: map[string]string{"big": "small"},
		BreakerFails: 5, BreakerRatio: 0.5, BreakerWindow: 10 * time.Second, BreakerOpen: 200 * time.Millisecond,
		BreakerOpenMax: time.Second, HangFactor: 20, HangMin: time.Second, RebalanceEvery: 50 * time.Millisecond, RebalanceSpread: 0.2,
		DrainTimeout: 10 * time.Second, ReportInterval: 20 * time.Millisecond,
	}
}

func failed(class task.ErrorClass, model string, n int) (out []task.Attempt) {
	for i := range n {
		out = append(out, task.Attempt{Number: i + 1, Model: model, Class: class})
	}
	return out
}

func empty() *Budget {
	b := NewBudget(0)
	for b.Take() {
	}
	return b
}

// Every row of the table, by the attempts that the task has left.
func TestDecide(t *testing.T) {
	cfg := testConfig()
	now := time.Unix(1000, 0)
	want := map[verdict.Next]struct {
		first, second, last Action // after the first attempt here, the second here, the last that counts
		exclude             bool   // when it goes elsewhere
	}{
		verdict.Never:      {Fail, Fail, Fail, false},
		verdict.Elsewhere:  {RetryElsewhere, RetryElsewhere, Fail, true},
		verdict.Others:     {RetryElsewhere, RetryElsewhere, RetryElsewhere, false},
		verdict.Fifth:      {RetryElsewhere, RetryElsewhere, RetryElsewhere, false},
		verdict.Second:     {RetryElsewhere, RetryElsewhere, RetryElsewhere, false},
		verdict.AfterPause: {RetryElsewhere, RetryElsewhere, RetryElsewhere, false},
		verdict.Soon:       {RetryElsewhere, RetryElsewhere, RetryElsewhere, false},
		verdict.Here:       {RetryHere, RetryElsewhere, Fail, true},
	}
	for _, row := range verdict.Table {
		if row.Next == verdict.Halves || row.Next == verdict.Resend || row.Kind == verdict.Cancelled {
			continue // they are sent again, or end, without a decision
		}
		t.Run(string(row.Kind), func(t *testing.T) {
			w, ok := want[row.Next]
			require.True(t, ok)
			if row.Kind == verdict.Expired {
				w.first, w.second, w.last = Expire, Expire, Expire
			}
			failure := *verdict.New(row.Kind, "d", "")
			decide := func(tk task.Task, n, here int, b *Budget) Decision {
				tk.Model = "big"
				return Decide(cfg, Situation{&tk, failed(row.Class, "big", n), failure, here, true}, b, now)
			}
			first := decide(task.Task{}, 1, 1, NewBudget(1))
			require.Equal(t, w.first, first.Action)
			require.False(t, first.Action == RetryHere && first.Exclude)
			second := decide(task.Task{}, 2, 2, NewBudget(1))
			require.Equal(t, w.second, second.Action)
			require.Equal(t, w.exclude, second.Exclude)
			require.Equal(t, w.last, decide(task.Task{}, 3, 2, NewBudget(1)).Action, "as many as configured")
			require.Equal(t, w.last, decide(task.Task{MaxAttempts: 1}, 1, 1, NewBudget(1)).Action, "as many as the task asks for")
			degraded := decide(task.Task{Degrade: true}, 3, 2, NewBudget(1))
			if w.last == Fail && row.Next != verdict.Never {
				require.Equal(t, Decision{Action: Degrade, Model: "small"}, degraded)
			} else {
				require.Equal(t, w.last, degraded.Action)
			}
			// Attempts with other models don't count.
			other := task.Task{Model: "small", Degrade: true}
			require.Equal(t, w.first, Decide(cfg, Situation{&other, append(failed(row.Class, "big", 3), failed(row.Class, "small", 1)...), failure, 1, true}, NewBudget(1), now).Action)
			// Retries end.
			end := decide(task.Task{}, 4*task.MaxAttemptsLimit, 1, NewBudget(1)).Action
			require.Contains(t, []Action{Fail, Expire}, end)
			// A backoff beyond the deadline is pointless.
			soon := decide(task.Task{Deadline: now.Add(time.Nanosecond)}, 1, 1, NewBudget(1))
			if first.After > 0 {
				require.Equal(t, Expire, soon.Action)
			} else {
				require.Equal(t, first.Action, soon.Action)
			}
			if first.Action == RetryHere { // without a budget: neither here nor soon
				poor := decide(task.Task{}, 1, 1, empty())
				require.Equal(t, Decision{Action: RetryElsewhere, After: cfg.BackoffMax, Exclude: true, OverBudget: true}, poor)
			}
			require.Equal(t, bool(row.Attempt), Counts(row.Class) && row.Class != task.ClassNone, "the table and the class agree on what uses up an attempt")
		})
	}
}

// A refused task goes on until there is no other device, or a second one calls it invalid.
func TestRefusedTasksGoToOtherDevices(t *testing.T) {
	cfg := testConfig()
	by := func(class task.ErrorClass, devices ...string) (out []task.Attempt) {
		for i, d := range devices {
			out = append(out, task.Attempt{Number: i + 1, Model: "big", Class: class, DeviceID: d})
		}
		return out
	}
	decide := func(k verdict.Kind, tk task.Task, attempts []task.Attempt, others bool) Decision { //nolint:revive // it is a fact
		tk.Model = "big"
		return Decide(cfg, Situation{&tk, attempts, *verdict.New(k, "d", ""), 1, others}, NewBudget(1), time.Now())
	}
	many := by(task.ClassDeclined, "a", "b", "c", "d", "e", "f", "g", "h")
	require.Equal(t, Decision{Action: RetryElsewhere}, decide(verdict.TooLong, task.Task{}, many, true), "at once, however many have declined")
	require.Equal(t, Decision{Action: Fail}, decide(verdict.TooLong, task.Task{}, many, false))
	require.Equal(t, Decision{Action: Degrade, Model: "small"}, decide(verdict.TooLong, task.Task{Degrade: true}, many, false))
	require.Equal(t, Decision{Action: RetryElsewhere}, decide(verdict.Invalid, task.Task{}, append(many, by(task.ClassInvalid, "i")...), true))
	require.Equal(t, Decision{Action: Fail}, decide(verdict.Invalid, task.Task{}, by(task.ClassInvalid, "i", "k"), true))
	require.Equal(t, Decision{Action: Fail}, decide(verdict.Invalid, task.Task{}, by(task.ClassInvalid, "i"), false))
	require.Equal(t, Decision{Action: RetryElsewhere}, decide(verdict.Unproven, task.Task{}, many[:4], true))
	require.Equal(t, Decision{Action: Fail}, decide(verdict.Unproven, task.Task{}, many[:5], true), "not of every device of a large fleet")
	require.Equal(t, Decision{Action: Fail}, decide(verdict.Unproven, task.Task{}, many[:1], false))
}

func TestBackoff(t *testing.T) {
	cfg := testConfig()
	for n := 1; n < 40; n++ {
		mean := min(float64(cfg.BackoffMin)*float64(uint64(1)<<min(n-1, 30)), float64(cfg.BackoffMax))
		for range 20 {
			d := cfg.backoff(n)
			require.GreaterOrEqual(t, float64(d), mean/2-1, "failure %d", n)
			require.LessOrEqual(t, float64(d), min(mean*1.5+1, float64(cfg.BackoffMax)), "failure %d", n)
		}
	}
	asked := func(retryAfter time.Duration) time.Duration {
		return Decide(cfg, Situation{&task.Task{}, nil, Failure{Kind: verdict.TooMany, Pause: retryAfter}, 1, true}, NewBudget(1), time.Now()).After
	}
	require.LessOrEqual(t, asked(time.Hour), 2*cfg.BackoffMin, "routers know of the pause, and of other devices")
	require.Equal(t, cfg.BackoffMin, asked(time.Nanosecond))
	require.Positive(t, asked(0))
}

func TestBudget(t *testing.T) {
	b := NewBudget(0.25)
	for i := range budgetReserve {
		require.True(t, b.Take(), "retry %d of the reserve", i)
	}
	require.False(t, b.Take())
	took := 0
	for range 1000 {
		b.Earn()
		if b.Take() {
			took++
		}
	}
	require.Equal(t, 250, took)
	for range 100_000 {
		b.Earn()
	}
	saved := 0
	for b.Take() {
		saved++
	}
	require.Equal(t, 250, saved, "savings are bounded")
}

func TestReasonsAreShort(t *testing.T) {
	as := failed(task.ClassDevice, "m", 30)
	for i := range as {
		as[i].Message, as[i].DeviceID = string(make([]byte, 500)), fmt.Sprint("d", i)
	}
	rs := reasons(as)
	require.Len(t, rs, 10)
	require.Equal(t, 30, rs[9]["number"])
	var list []string
	for i := range 40 {
		list = excluding(list, fmt.Sprint(i%35))
	}
	require.LessOrEqual(t, len(list), 32)
	require.Len(t, excluding([]string{"a"}, "a"), 1)
}
