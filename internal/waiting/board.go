package waiting

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
)

// Interval is how often a board looks.
const Interval = time.Second

// negligible is the age up to which things are passing through rather than waiting.
const negligible = 100 * time.Millisecond

// Source is a stage that is asked what waits in it.
type Source struct {
	Stage string
	Ask   func(now time.Time) List // must not block
}

// Board knows what waits in the stages of a process.
type Board struct {
	bound   time.Duration
	sources []Source
	logger  *slog.Logger
	metrics *metrics.Waiting
	shown   map[string]map[Reason]bool // by stage; used only by Look
	stalls  atomic.Pointer[map[string]*Stall]
}

// NewBoard returns a board of the sources. bound is how long anything may stand still.
func NewBoard(bound time.Duration, sources []Source, logger *slog.Logger, m *metrics.Waiting) *Board {
	b := &Board{bound: bound, sources: sources, logger: logger, metrics: m, shown: map[string]map[Reason]bool{}}
	b.stalls.Store(&map[string]*Stall{})
	return b
}

// Run looks until ctx ends.
func (b *Board) Run(ctx context.Context) {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.Look(time.Now())
		}
	}
}

// Look asks every stage once.
func (b *Board) Look(now time.Time) {
	stalls := map[string]*Stall{}
	lists := map[string]List{}
	for _, s := range b.sources {
		l := lists[s.Stage]
		for _, o := range s.Ask(now) {
			l.Add(o)
		}
		lists[s.Stage] = l
	}
	for stage, l := range lists {
		b.show(stage, l, now)
		if s := worst(stage, l, now, b.bound); s != nil {
			stalls[stage] = s
		}
	}
	before := *b.stalls.Swap(&stalls)
	for stage := range lists {
		is, was := stalls[stage], before[stage]
		switch {
		case is != nil && (was == nil || was.Reason != is.Reason):
			b.logger.Error("a stage stands still", "stage", stage, "problem", is.Error())
		case is == nil && was != nil:
			b.logger.Info("a stage moves again", "stage", stage)
		}
	}
}

// show sets the metrics of a stage.
func (b *Board) show(stage string, l List, now time.Time) {
	if b.shown[stage] == nil {
		b.shown[stage] = map[Reason]bool{}
	}
	ages := map[Reason]float64{}
	for i := range l {
		if age := l[i].Age(now); age >= negligible && l[i].What != "" {
			ages[l[i].Reason] = age.Seconds()
			b.shown[stage][l[i].Reason] = true
		}
	}
	for r := range b.shown[stage] { // those that no longer occur go to 0
		b.metrics.Oldest.WithLabelValues(stage, string(r)).Set(ages[r])
	}
	stalled := 0.0
	if worst(stage, l, now, b.bound) != nil {
		stalled = 1
	}
	b.metrics.Stalled.WithLabelValues(stage).Set(stalled)
}

// worst returns what exceeds its bound by most; nil if nothing does.
func worst(stage string, l List, now time.Time, bound time.Duration) *Stall {
	over := slices.DeleteFunc(slices.Clone(l), func(o Oldest) bool { return !o.stalled(now, bound) })
	if len(over) == 0 {
		return nil
	}
	o := slices.MaxFunc(over, func(a, b Oldest) int {
		return cmp.Or(cmp.Compare(now.Sub(a.Still)-a.Allow, now.Sub(b.Still)-b.Allow), strings.Compare(string(a.Reason), string(b.Reason)))
	})
	return &Stall{Oldest: o, Stage: stage, For: now.Sub(o.Still)}
}

// Stall returns what stands still in a stage, as of the last look; nil if nothing does.
func (b *Board) Stall(stage string) *Stall { return (*b.stalls.Load())[stage] }
