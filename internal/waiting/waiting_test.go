package waiting_test

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
)

// stage is a stage whose answer a test sets.
type stage struct {
	mu   sync.Mutex
	list waiting.List
}

func (s *stage) ask(time.Time) waiting.List {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

func (s *stage) set(l ...waiting.Oldest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = l
}

// value reads a metric of a stage.
func value(t *testing.T, reg *prometheus.Registry, name, reason string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && (reason == "" || l.GetName() == "reason" && l.GetValue() == reason) {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	return -1
}

// board runs a board with one stage, in virtual time.
func board(t *testing.T, bound time.Duration) (*waiting.Board, *stage, *prometheus.Registry) {
	t.Helper()
	s, reg := &stage{}, prometheus.NewRegistry()
	b := waiting.NewBoard(bound, []waiting.Source{{Stage: "router", Ask: s.ask}}, slog.New(slog.DiscardHandler), &metrics.New(reg).Waiting)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return b, s, reg
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// What could go on is a stall once it has not moved for its bound, and no longer when it moves.
func TestAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s, reg := board(t, 2*time.Minute)
		began := time.Now()
		record := waiting.Oldest{Reason: waiting.Postgres, What: "a record", Since: began, Still: began, Cause: "at db:5432"}
		s.set(record)
		pass(2*time.Minute + time.Millisecond)
		require.Nil(t, b.Stall("router"), "not early")
		pass(waiting.Interval)
		stall := b.Stall("router")
		require.NotNil(t, stall)
		for _, part := range []string{"a record has stood still for 2m1s", "(postgres)", "Postgres does not answer", "Remedy: repair Postgres", "at db:5432"} {
			require.ErrorContains(t, stall, part)
		}
		require.NotContains(t, stall.Brief(), "db:5432", "the API does not show addresses")
		require.Equal(t, 1.0, value(t, reg, "batchyard_stage_stalled", ""))
		require.InDelta(t, 121, value(t, reg, "batchyard_stage_oldest_seconds", "postgres"), 1)
		require.Nil(t, b.Stall("workers"))

		record.Still = time.Now() // it is as old as before, and moves
		s.set(record)
		pass(waiting.Interval)
		require.Nil(t, b.Stall("router"))
		require.Zero(t, value(t, reg, "batchyard_stage_stalled", ""))
		require.InDelta(t, 122, value(t, reg, "batchyard_stage_oldest_seconds", "postgres"), 1)
		s.set()
		pass(waiting.Interval)
		require.Zero(t, value(t, reg, "batchyard_stage_oldest_seconds", "postgres"))
	})
}

// Expected waiting is never a stall, and what is allowed to take longer is one later.
func TestWhatIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s, reg := board(t, time.Minute)
		began := time.Now()
		expected := waiting.Oldest{Reason: waiting.NoDevice, What: "a task", Since: began}
		s.set(expected, waiting.Oldest{Reason: waiting.Running, What: "another", Since: began, Still: began, Allow: time.Hour})
		pass(time.Hour + 59*time.Second)
		require.Nil(t, b.Stall("router"))
		require.InDelta(t, 3659, value(t, reg, "batchyard_stage_oldest_seconds", "no_device"), 2)
		pass(3 * time.Second)
		require.Equal(t, waiting.Running, b.Stall("router").Reason)
		s.set(expected)
		pass(5 * time.Hour)
		require.Nil(t, b.Stall("router"))
	})
}

// A goroutine that no longer publishes stands still itself.
func TestAPublisherThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := waiting.NewPublished("the scheduler", 10*time.Second)
		require.Empty(t, p.Get(time.Now()), "it has not begun")
		p.Set(time.Now(), waiting.List{{Reason: waiting.Later, What: "a task", Since: time.Now()}})
		<-time.After(9 * time.Second)
		require.Len(t, p.Get(time.Now()), 1)
		<-time.After(time.Second)
		l := p.Get(time.Now())
		require.Len(t, l, 2)
		require.Equal(t, "the scheduler", l[1].What)
		require.Equal(t, 10*time.Second, time.Since(l[1].Still))
		require.Len(t, p.Get(time.Now()), 2, "reading changes nothing")
	})
}

// A list keeps what has stood still for longest of each reason, and its greatest age.
func TestAList(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	var l waiting.List
	for _, o := range []waiting.Oldest{
		{Reason: waiting.Busy, What: "moves", Since: ago(time.Hour), Still: ago(time.Second)},
		{Reason: waiting.Busy, What: "stands", Since: ago(time.Minute), Still: ago(time.Minute)},
		{Reason: waiting.Busy, What: "may", Since: ago(time.Minute), Still: ago(2 * time.Minute), Allow: time.Hour},
		{Reason: waiting.Later, What: "young", Since: ago(time.Second)},
		{Reason: waiting.Later, What: "old", Since: ago(time.Minute)},
	} {
		l.Add(o)
	}
	require.Len(t, l, 2)
	require.Equal(t, "stands", l[0].What)
	require.Equal(t, time.Hour, l[0].Age(now))
	require.Equal(t, time.Minute, now.Sub(l[0].Still))
	require.Equal(t, "old", l[1].What)
}

// Something is lost from when it was first not found, until it is found or gone.
func TestLost(t *testing.T) {
	var l waiting.Lost[int]
	now := time.Now()
	require.Equal(t, map[int]time.Time{1: now}, l.Look(now, []int{1}))
	require.Equal(t, map[int]time.Time{1: now, 2: now.Add(1)}, l.Look(now.Add(1), []int{1, 2}))
	require.Empty(t, l.Look(now.Add(2), nil))
	require.Equal(t, map[int]time.Time{1: now.Add(3)}, l.Look(now.Add(3), []int{1}))
}

func TestACondition(t *testing.T) {
	var c waiting.Condition
	var l waiting.List
	require.False(t, c.Add(&l, waiting.Redis, "tasks"))
	c.Begin("first")
	c.Begin("second")
	require.True(t, c.Add(&l, waiting.Redis, "tasks"))
	require.Equal(t, "first", l[0].Cause)
	c.End()
	require.False(t, c.Add(&l, waiting.Redis, "tasks"))
}

// docs/operations.md lists the reasons as they are here.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	seen := map[waiting.Reason]bool{}
	for _, e := range waiting.Reasons {
		require.False(t, seen[e.Reason])
		seen[e.Reason] = true
		require.Equal(t, e, e.Reason.Explain())
		require.Contains(t, string(text), "| `"+string(e.Reason)+"` | "+string(e.Kind)+" | "+e.Means+" | "+e.Remedy+" |\n")
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		for _, kind := range []waiting.Kind{waiting.Expected, waiting.Moving, waiting.Blocked} {
			if strings.Contains(line, "` | "+string(kind)+" | ") {
				rows++
			}
		}
	}
	require.Equal(t, len(waiting.Reasons), rows)
}
