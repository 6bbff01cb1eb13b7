package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// lineEvery is how often progress is a line where no bar can be drawn: in a log,
// more would be noise.
const lineEvery = 5 * time.Second

// progress shows how far something is, on standard error: as a bar on a
// terminal, as a line now and then otherwise. It may be used by any goroutine.
type progress struct {
	c     *cli
	label string
	of    string // what is counted, one of it
	total int

	mu    sync.Mutex
	bar   *progressbar.ProgressBar // nil: lines
	began time.Time
	done  int
	told  int
	at    time.Time // of the last line
	note  string
}

// progress begins to show a piece of work of so many tasks.
func (c *cli) progress(label string, total int) *progress { return c.progressOf(label, total, "task") }

// progressOf is progress for what is no tasks.
func (c *cli) progressOf(label string, total int, of string) *progress {
	p := &progress{c: c, label: label, of: of, total: total, began: c.now(), told: -1}
	p.at = p.began
	if c.stderrTTY {
		p.bar = progressbar.NewOptions(total,
			progressbar.OptionSetWriter(c.err), progressbar.OptionSetDescription(label),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(of+"s"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth(),
			progressbar.OptionOnCompletion(func() { _, _ = fmt.Fprintln(c.err) }))
	}
	return p
}

// Set says how many tasks are done.
func (p *progress) Set(done int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	if p.bar != nil {
		_ = p.bar.Set(min(done, p.total)) // a bar that cannot be drawn stops no work
		return
	}
	if now := p.c.now(); now.Sub(p.at) >= lineEvery && done != p.told {
		p.at = now
		p.line()
	}
}

// Grow raises the total to what there turned out to be, if that is more.
func (p *progress) Grow(total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total = max(p.total, total); p.bar != nil {
		p.bar.ChangeMax(p.total)
	}
}

// Note says something once, until something else is to be said: that a service
// is away, say.
func (p *progress) Note(note string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if note == p.note {
		return
	}
	p.note = note
	if note == "" {
		return
	}
	if p.bar != nil {
		_ = p.bar.Clear() // drawn again by the next Set
	}
	_, _ = fmt.Fprintf(p.c.err, "%s: %s\n", p.label, plain(note))
}

// Finish says the last of it.
func (p *progress) Finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		if p.done < p.total {
			_ = p.bar.Exit()
			_, _ = fmt.Fprintln(p.c.err)
		}
		return
	}
	if p.told != p.done {
		p.line()
	}
}

func (p *progress) line() {
	p.told = p.done
	_, _ = fmt.Fprintf(p.c.err, "%s: %d of %s, %s\n", p.label, p.done, counted(p.total, p.of), span(p.c.now().Sub(p.began)))
}

// step tells people what is being started.
func (c *cli) step(what string) {
	if c.stderrTTY {
		_, _ = fmt.Fprintf(c.err, "\r\033[K%s", what)
	}
}
