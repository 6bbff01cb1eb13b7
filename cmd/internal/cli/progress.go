package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// lineEvery is how often progress is printed where no bar can be drawn. In a log,
// more often would be noise.
const lineEvery = 5 * time.Second

// Progress shows how far a piece of work is, on standard error: a bar on a terminal,
// otherwise a line every few seconds. Goroutines may share it.
type Progress struct {
	c     *Env
	label string
	of    string // what is counted, in the singular
	total int

	mu    sync.Mutex
	bar   *progressbar.ProgressBar // nil: lines
	began time.Time
	done  int
	told  int
	at    time.Time // of the last line
	note  string
}

// Progress starts showing work on so many tasks.
func (c *Env) Progress(label string, total int) *Progress { return c.ProgressOf(label, total, "task") }

// ProgressOf is [Env.Progress] for things other than tasks; of names one of them.
func (c *Env) ProgressOf(label string, total int, of string) *Progress {
	p := &Progress{c: c, label: label, of: of, total: total, began: c.Now(), told: -1}
	p.at = p.began
	if c.StderrTTY {
		p.bar = progressbar.NewOptions(total,
			progressbar.OptionSetWriter(c.Err), progressbar.OptionSetDescription(label),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(of+"s"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth(),
			progressbar.OptionOnCompletion(func() { _, _ = fmt.Fprintln(c.Err) }))
	}
	return p
}

// Set records how many are done.
func (p *Progress) Set(done int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	if p.bar != nil {
		_ = p.bar.Set(min(done, p.total)) // the work matters more than the bar
		return
	}
	if now := p.c.Now(); now.Sub(p.at) >= lineEvery && done != p.told {
		p.at = now
		p.line()
	}
}

// Grow raises the total, when there turns out to be more than expected.
func (p *Progress) Grow(total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total = max(p.total, total); p.bar != nil {
		p.bar.ChangeMax(p.total)
	}
}

// Note prints a note, such as that a service is away. The same note again is not
// repeated; an empty one clears it.
func (p *Progress) Note(note string) {
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
	_, _ = fmt.Fprintf(p.c.Err, "%s: %s\n", p.label, Plain(note))
}

// Finish prints the final state.
func (p *Progress) Finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		if p.done < p.total {
			_ = p.bar.Exit()
			_, _ = fmt.Fprintln(p.c.Err)
		}
		return
	}
	if p.told != p.done {
		p.line()
	}
}

func (p *Progress) line() {
	p.told = p.done
	_, _ = fmt.Fprintf(p.c.Err, "%s: %d of %s, %s\n", p.label, p.done, Counted(p.total, p.of), span(p.c.Now().Sub(p.began)))
}

// Step shows on a terminal what is being started; empty clears the line.
func (c *Env) Step(what string) {
	if c.StderrTTY {
		_, _ = fmt.Fprintf(c.Err, "\r\033[K%s", what)
	}
}
