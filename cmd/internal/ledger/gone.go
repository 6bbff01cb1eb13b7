package ledger

import (
	"fmt"
	"time"

	"github.com/batchyard/batchyard/task"
)

// A topic of tasks that was deleted and created again, or whose records someone deleted, has no record of
// the tasks before. Each of them looks like a task that was never submitted. So those that were submitted
// before the first record of their topic are reported together.

// gone is the tasks that lack a record because their topic begins later.
type gone struct {
	tasks       int64
	first, last int64 // when the first and the last of them was submitted, in microseconds
}

// backIndex returns the index in back of the topic of a priority.
func backIndex(p task.Priority) byte {
	switch p {
	case task.High:
		return 0
	case task.Normal:
		return 1
	case task.Low:
		return 2
	}
	return byte(len(back))
}

// noteBegin notes when the first record of a topic of tasks was written.
func (l *look) noteBegin(topic string, at time.Time) {
	if before, ok := l.begins[topic]; !ok || at.UnixMicro() < before {
		l.begins[topic] = at.UnixMicro()
	}
}

// isGone reports whether a task without a record was submitted before the first record of its topic, and
// counts it then. An empty topic begins now.
func (l *look) isGone(topic byte, since int64) bool {
	if since == 0 {
		return false
	}
	begin := l.r.At.UnixMicro()
	for i, name := range back {
		if at, ok := l.begins[name]; ok && (int(topic) == i || int(topic) >= len(back)) {
			begin = min(begin, at)
		}
	}
	if since >= begin {
		return false
	}
	g := &l.gone[min(int(topic), len(back))]
	if g.tasks++; g.tasks == 1 || since < g.first {
		g.first = since
	}
	g.last = max(g.last, since)
	return true
}

// judgeGone reports the tasks whose topic begins later.
func (l *look) judgeGone() {
	for i, g := range l.gone {
		if g.tasks == 0 {
			continue
		}
		name := "tasks.*"
		if i < len(back) {
			name = back[i]
		}
		l.r.wrong(l.before, Problem{Kind: TasksGone, At: name, What: fmt.Sprintf("%d tasks that were submitted from %s to %s have no record: the topic begins later",
			g.tasks, text(g.first), text(g.last))})
	}
}

func text(micro int64) string { return time.UnixMicro(micro).UTC().Format(time.RFC3339) }
