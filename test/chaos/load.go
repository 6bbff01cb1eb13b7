package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
)

const (
	model         = "m"
	unservedModel = "unserved-model"
	most          = 256             // concurrent requests of clients
	patience      = 8 * time.Second // of a client
	topicBase     = "chaos."
)

// load is the clients. They submit tasks at a steady rate, whatever happens.
type load struct {
	w      *world
	http   *http.Client
	kafka  *kgo.Client
	hook   func(task.Key) string
	rate   int // tasks per second
	slots  chan struct{}
	wg     sync.WaitGroup
	prefix string

	mu      sync.Mutex
	r       *rand.Rand
	n       int
	submits []check.Submit
	taken   map[task.Key]bool
	sent    []*task.Task // candidates for resubmission, cancels and queries
	cancels map[task.Key]bool
	retries []check.Retry
	low     map[task.Run]bool // accepted runs of tasks of low priority
	lowKeys map[task.Key]bool // all tasks of low priority
	seen    []check.Seen
	poisons []check.Poison
	missed  int  // not sent, because too many requests were in flight
	noLow   bool // no task of low priority is submitted

	lows  atomic.Int64 // requests in flight with a task of low priority
	txn   *kgo.Client
	inTxn sync.Mutex // a client has one transaction at a time
}

func newLoad(w *world, seed uint64, rate int, hook func(task.Key) string) (*load, error) {
	k, err := kgo.NewClient(kgo.SeedBrokers(w.brokers("b")...), kgo.ClientID("chaos-load"),
		kgo.RecordDeliveryTimeout(patience), kgo.ProduceRequestTimeout(patience/2), kgo.RetryTimeout(patience),
		kgo.ProducerLinger(0), kgo.AllowIdempotentProduceCancellation(), kgo.DialTimeout(3*time.Second))
	if err != nil {
		return nil, fmt.Errorf("creating a Kafka client: %w", err)
	}
	txn, err := newTransactions(w)
	if err != nil {
		k.Close()
		return nil, err
	}
	return &load{
		w: w, kafka: k, txn: txn, hook: hook, rate: rate, slots: make(chan struct{}, most), prefix: "t", cancels: map[task.Key]bool{}, taken: map[task.Key]bool{}, low: map[task.Run]bool{}, lowKeys: map[task.Key]bool{},
		http: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		r:    rand.New(rand.NewPCG(seed, 2)), //nolint:gosec // must be reproducible
	}, nil
}

// run submits tasks until ctx ends, and then waits for requests in flight.
func (l *load) run(ctx context.Context) {
	const tick = 50 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	due := 0.0
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			l.wg.Wait()
			return
		}
		for due += float64(l.rate) * tick.Seconds(); due >= 1; {
			due -= float64(l.step())
		}
	}
}

// spawn runs f in a goroutine unless too many are running, which it reports. The caller
// holds mu.
func (l *load) spawn(f func()) bool {
	select {
	case l.slots <- struct{}{}:
	default:
		l.missed++
		return false
	}
	l.wg.Go(func() {
		defer func() { <-l.slots }()
		f()
	})
	return true
}

// step makes one submission and returns the number of tasks in it.
func (l *load) step() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.r.IntN(1000)
	api := l.r.IntN(len(Lanes))
	switch {
	case x < 40 && len(l.sent) > 0: // submit the same task again
		l.resubmit(api, l.sent[l.r.IntN(len(l.sent))])
		return 1
	case x < 80 && len(l.sent) > 0: // run it again
		if t := l.sent[l.r.IntN(len(l.sent))]; t.Model == model { // without the deadline, which has passed, another would wait and not end
			l.spawnOf(t, func() { l.retry(api, t) })
		}
		return 1
	case x < 100 && len(l.sent) > 0: // ask something else under its id
		l.resubmit(api, otherUnder(l.sent[l.r.IntN(len(l.sent))]))
		return 1
	case x < 115:
		some := []*task.Task{l.make(), l.make(), l.make()}
		commit := l.r.IntN(2) == 0
		if commit {
			l.sent = append(l.sent, some...)
		}
		l.spawnOf(lowest(some), func() { l.transact(some, commit) })
		return len(some)
	case x < 125: // one invalid task gets the whole array refused
		some := []*task.Task{l.make(), l.make()}
		some[1].Model = ""
		l.spawn(func() { l.post(api, some, check.Refused) })
		return 1
	case x < 135:
		value := []byte(`{"model":"m","input":{`)
		l.spawn(func() { l.poison(value) })
		return 1
	case x < 425: // directly to Kafka
		t := l.make()
		l.sent = append(l.sent, t)
		l.spawnOf(t, func() { l.produce(t) })
		l.after(t)
		return 1
	}
	n := 1 + l.r.IntN(5)
	some := make([]*task.Task, n)
	for i := range some {
		some[i] = l.make()
		l.after(some[i])
	}
	l.sent = append(l.sent, some...)
	l.spawnOf(lowest(some), func() { l.post(api, some, check.Accepted) })
	return n
}

// after schedules cancels and status queries for some tasks after their submission.
func (l *load) after(t *task.Task) {
	x, wait, api := l.r.IntN(100), time.Duration(l.r.IntN(3000))*time.Millisecond, l.r.IntN(len(Lanes))
	switch {
	case x < 4:
		l.spawn(func() {
			<-time.After(wait)
			l.cancel(api, t.Key())
		})
	case x < 14:
		l.spawn(func() {
			<-time.After(wait)
			l.query(api, t.Key())
		})
	}
}

// make draws a task. Ids are unique within a tenant, and a tenth of them are also used
// by another tenant.
func (l *load) make() *task.Task {
	l.n++
	tenants := []string{"alpha", "alpha", "beta", "gamma"}
	t := &task.Task{
		ID: fmt.Sprintf("%s%06d", l.prefix, l.n), Tenant: tenants[l.r.IntN(len(tenants))], Model: model, Endpoint: task.EndpointChat,
		Priority: []task.Priority{task.High, task.Normal, task.Normal, task.Low}[l.r.IntN(4)],
	}
	if l.noLow && t.Priority == task.Low {
		t.Priority = task.Normal
	}
	if len(l.sent) > 0 && l.r.IntN(10) == 0 {
		if other := l.sent[l.r.IntN(len(l.sent))]; other.Tenant != "delta" {
			t.ID, t.Tenant = other.ID, "delta"
		}
		if l.taken[t.Key()] {
			t.ID, t.Tenant = fmt.Sprintf("%s%06d", l.prefix, l.n), "alpha"
		}
	}
	l.taken[t.Key()] = true
	text, _ := json.Marshal("say " + t.Tenant + " " + t.ID) //nolint:errchkjson // a string
	t.Input = task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":%s}]}`, text))
	if l.r.IntN(7) == 0 {
		t.Endpoint, t.Input = task.EndpointEmbeddings, task.Input(fmt.Sprintf(`{"input":%s}`, text))
	}
	switch x := l.r.IntN(100); {
	case t.Priority == task.Low: // they end soon, so that their topic can be recreated
	case x < 5:
		t.Deadline = time.Now().Add(time.Duration(500+l.r.IntN(8000)) * time.Millisecond).UTC().Truncate(time.Microsecond)
	case x < 7:
		t.Model, t.Deadline = unservedModel, time.Now().Add(time.Duration(2000+l.r.IntN(6000))*time.Millisecond).UTC().Truncate(time.Microsecond)
	case x < 10:
		t.NotBefore = time.Now().Add(time.Duration(l.r.Int64N(int64(l.w.profile.waits)))).UTC().Truncate(time.Microsecond)
	case x < 14:
		t.Needs = []string{"gpu"}
	}
	if l.r.IntN(2) == 0 {
		t.Callback = &task.Callback{URL: l.hook(t.Key())}
	}
	return t
}

func (l *load) remember(tasks []*task.Task, outcome check.Outcome, via, said string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range tasks {
		if t.Priority == task.Low {
			l.lowKeys[t.Key()] = true
			if outcome == check.Accepted {
				l.low[task.Run{Key: t.Key()}] = true
			}
		}
		l.submits = append(l.submits, check.Submit{Key: t.Key(), Outcome: outcome, Print: t.Fingerprint(), Via: via, At: time.Now(),
			Callback: t.Callback != nil, Deadline: !t.Deadline.IsZero(), Said: said})
	}
}

// post submits tasks over HTTP; expect is Accepted or, for invalid tasks, Refused. The
// status distinguishes a refusal from an unknown outcome: 503 means unknown.
func (l *load) post(api int, tasks []*task.Task, expect check.Outcome) {
	wrong := expect == check.Refused
	via := "http/api-" + Lanes[api]
	status, body, err := l.do(api, http.MethodPost, "/v1/tasks", "", tasks)
	switch {
	case wrong && (err != nil || status >= 500):
		l.remember(tasks, check.Refused, via, "no answer, but the task is invalid")
	case err != nil:
		l.remember(tasks, check.Unknown, via, err.Error())
	case status == http.StatusAccepted:
		l.remember(tasks, check.Accepted, via, "")
	case status == http.StatusUnprocessableEntity && wrong, status == http.StatusTooManyRequests, status == http.StatusConflict:
		l.remember(tasks, check.Refused, via, fmt.Sprintf("%d %s", status, body))
	case status >= 500:
		l.remember(tasks, check.Unknown, via, fmt.Sprintf("%d %s", status, body))
	default:
		l.remember(tasks, check.Refused, via, fmt.Sprintf("%d %s", status, body))
		l.w.say("a valid submission was answered with %d %s", status, body)
	}
	if (err != nil || status >= 500) && !wrong {
		l.mu.Lock()
		again, api := l.r.IntN(2) == 0, l.r.IntN(len(Lanes))
		l.mu.Unlock()
		if again { // clients retry after an unknown outcome
			if status, _, err := l.do(api, http.MethodPost, "/v1/tasks", "", tasks); err == nil && status == http.StatusAccepted {
				l.remember(tasks, check.Accepted, "http/api-"+Lanes[api], "")
			} else {
				l.remember(tasks, check.Unknown, "http/api-"+Lanes[api], "")
			}
		}
	}
}

func (l *load) do(api int, method, path, tenant string, body any) (int, []byte, error) {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return 0, nil, fmt.Errorf("encoding a request: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, l.w.process("api-"+Lanes[api]).URL()+path, bytes.NewReader(raw))
	if err != nil {
		return 0, nil, fmt.Errorf("creating a request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "chaos/1")
	if tenant != "" {
		req.Header.Set("X-Batchyard-Tenant", tenant)
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read to the end
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the answer: %w", err)
	}
	return resp.StatusCode, b, nil
}

// produce submits a task by writing to Kafka, like a third-party client.
func (l *load) produce(t *task.Task) {
	b, err := json.Marshal(t)
	if err != nil {
		l.w.say("encoding a task: %v", err)
		return
	}
	_, err = l.write(topicBase+stream.TasksTopic(t.Priority), t.ID, b)
	if err != nil {
		l.remember([]*task.Task{t}, check.Unknown, "kafka", err.Error())
		return
	}
	l.remember([]*task.Task{t}, check.Accepted, "kafka", "")
}

func (l *load) write(topic, key string, value []byte) (*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return l.kafka.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte(key), Value: value}).First()
}

func (l *load) poison(value []byte) {
	r, err := l.write(topicBase+stream.TasksNormal, "", value)
	if err != nil {
		return // the record may or may not exist
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.poisons = append(l.poisons, check.Poison{Topic: stream.TasksNormal, Partition: r.Partition, Offset: r.Offset})
}

func (l *load) cancel(api int, k task.Key) {
	l.mu.Lock()
	l.cancels[k] = true // whether or not it succeeds
	l.mu.Unlock()
	_, _, _ = l.do(api, http.MethodPost, "/v1/tasks/"+k.ID+"/cancel", k.Tenant, nil) // the history shows the outcome
}

func (l *load) query(api int, k task.Key) {
	status, body, err := l.do(api, http.MethodGet, "/v1/tasks/"+k.ID, k.Tenant, nil)
	if err != nil || status != http.StatusOK {
		return
	}
	var answer struct {
		State task.State `json:"state"`
	}
	if json.Unmarshal(body, &answer) != nil {
		l.w.say("the status of %s is %s", k, body)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, check.Seen{Key: k, State: answer.State})
}

// acceptedSince adds the keys of the tasks that were accepted since the nth submit, and returns the number of
// submits.
func (l *load) acceptedSince(n int, to map[task.Key]bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.submits[n:] {
		if s.Outcome == check.Accepted {
			to[s.Key] = true
		}
	}
	return len(l.submits)
}

// into adds what the clients know to the history.
func (l *load) into(h *check.History) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Submits = append(h.Submits, l.submits...)
	for i := range h.Submits {
		h.Submits[i].Cancel = l.cancels[h.Submits[i].Key]
	}
	h.Retries = append(h.Retries, l.retries...)
	h.Seen, h.Poisons = append(h.Seen, l.seen...), append(h.Poisons, l.poisons...)
}

func (l *load) close() {
	l.kafka.Close()
	l.txn.Close()
	l.http.CloseIdleConnections()
}
