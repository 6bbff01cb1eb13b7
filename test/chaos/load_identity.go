package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
)

// newTransactions returns a client that writes in transactions. An open one holds back
// all that is written after it, so it must not outlive its client for long.
func newTransactions(w *world) (*kgo.Client, error) {
	k, err := kgo.NewClient(kgo.SeedBrokers(w.brokers("b")...), kgo.ClientID("chaos-transactions"), kgo.TransactionalID("chaos"),
		kgo.TransactionTimeout(patience), kgo.RecordDeliveryTimeout(patience), kgo.ProduceRequestTimeout(patience/2), kgo.RetryTimeout(patience),
		kgo.ProducerLinger(0), kgo.DialTimeout(3*time.Second))
	if err != nil {
		return nil, fmt.Errorf("creating a transactional Kafka client: %w", err)
	}
	return k, nil
}

// transact writes tasks in one transaction and commits or aborts it.
func (l *load) transact(tasks []*task.Task, commit bool) {
	l.inTxn.Lock()
	defer l.inTxn.Unlock()
	outcome, said := check.Aborted, ""
	if commit {
		outcome = check.Unknown
	}
	defer func() { l.remember(tasks, outcome, "transaction", said) }()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if err := l.txn.BeginTransaction(); err != nil {
		said = err.Error()
		return // nothing was written; a commit stays unknown, which promises nothing
	}
	var records []*kgo.Record
	for _, t := range tasks {
		b, err := json.Marshal(t)
		if err != nil {
			l.w.say("encoding a task: %v", err)
			return
		}
		records = append(records, &kgo.Record{Topic: topicBase + stream.TasksTopic(t.Priority), Key: []byte(t.ID), Value: b})
	}
	err := l.txn.ProduceSync(ctx, records...).FirstErr()
	end := kgo.TransactionEndTry(commit && err == nil)
	if e := l.txn.EndTransaction(ctx, end); e != nil || err != nil {
		said = fmt.Sprint("writing: ", err, ", ending: ", e)
		return
	}
	if commit {
		outcome = check.Accepted
	}
}

// otherUnder returns another request under the id of a task.
func otherUnder(t *task.Task) *task.Task {
	o := *t
	o.Input = task.Input(`{"input":"another request"}`)
	if t.Endpoint == task.EndpointChat {
		o.Input = task.Input(`{"messages":[{"role":"user","content":"another request"}]}`)
	}
	return &o
}

// resubmit submits a task under an id that is in use. The caller holds mu.
func (l *load) resubmit(api int, t *task.Task) {
	if l.r.IntN(2) == 0 {
		l.spawnOf(t, func() { l.produce(t) })
	} else {
		l.spawnOf(t, func() { l.post(api, []*task.Task{t}, check.Accepted) })
	}
}

// retry asks to run a task again, which is refused until it has finished.
func (l *load) retry(api int, t *task.Task) {
	k := t.Key()
	r := check.Retry{Run: task.Run{Key: k}, Outcome: check.Refused}
	status, body, err := l.do(api, http.MethodPost, "/v1/tasks/"+k.ID+"/retry", k.Tenant, nil)
	var answer struct {
		Generation int `json:"generation"`
	}
	switch {
	case err != nil, status >= http.StatusInternalServerError:
		r.Outcome = check.Unknown
	case status == http.StatusAccepted && json.Unmarshal(body, &answer) == nil:
		r.Run.Generation, r.Outcome = answer.Generation, check.Accepted
	case status != http.StatusConflict && status != http.StatusNotFound && status != http.StatusGone:
		l.w.say("a retry of %s was answered with %d %s", k, status, body)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retries = append(l.retries, r)
	if t.Priority == task.Low && r.Outcome == check.Accepted {
		l.low[r.Run] = true
	}
}

// lowest returns a task of the lowest priority among some.
func lowest(some []*task.Task) *task.Task {
	i := slices.IndexFunc(some, func(t *task.Task) bool { return t.Priority == task.Low })
	return some[max(i, 0)]
}

// spawnOf is spawn for a request about a task. It leaves the request out if the task has
// low priority and the topic of such tasks is about to be deleted. The caller holds mu.
func (l *load) spawnOf(t *task.Task, f func()) {
	if t.Priority != task.Low {
		l.spawn(f)
		return
	}
	if l.noLow {
		return
	}
	l.lows.Add(1)
	if !l.spawn(func() {
		defer l.lows.Add(-1)
		f()
	}) {
		l.lows.Add(-1)
	}
}

// withoutLow stops submitting tasks of low priority, or continues.
func (l *load) withoutLow(stop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noLow = stop
}

// lowRuns returns the accepted runs of tasks of low priority, if no request about one is
// in flight.
func (l *load) lowRuns() (runs []task.Run, quiet bool) {
	if l.lows.Load() > 0 {
		return nil, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.low)), true
}
