package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/watch"
)

// What things need to move, apart from their stages.
const (
	needKafka    = "kafka"
	needRedis    = "redis"
	needPostgres = "postgres"
	needTime     = "time in Postgres" // that statements may take
	needDevices  = "devices"
)

// For how long things may stand still while they have what they need, with the settings of a run. A stage
// notices that one of its processes or a service has gone within failover: the session expires, the others
// rejoin, and requests that were under way time out.
const (
	failover = SessionTimeout + rebalanceTimeout + 2*requestTimeout

	boundReader   = 2 * failover // reads, after the loss of a process and of a service at the same time
	boundRecorder = 2 * failover
	boundCallback = 2 * failover
	boundTask     = 4 * failover // passes three stages and the recorder, and may be tried several times
)

// lacking counts, for each need, the faults that are underway and take it away.
type lacking struct {
	mu    sync.Mutex
	count map[string]int
}

// add takes needs away until the returned function is called.
func (l *lacking) add(needs ...string) (giveBack func()) {
	change := func(by int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.count == nil {
			l.count = map[string]int{}
		}
		for _, n := range needs {
			l.count[n] += by
		}
	}
	change(1)
	return func() { change(-1) }
}

func (l *lacking) lacks(need string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[need] > 0
}

// lackedBy returns what a fault takes away, in whole or in part. Records that were deleted, more partitions
// and more processes take nothing away.
func lackedBy(f Fault) []string {
	switch f.Kind {
	case Absent:
		return []string{f.Target}
	case RecordsDeleted:
		return []string{reader(f.Target)} // while they are being deleted
	case Kill, Pause, Term, Third:
		stage, _, _ := strings.Cut(f.Target, "-")
		return []string{stage}
	case DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles:
		return []string{needDevices}
	case TopicRecreated:
		return []string{"router"}
	case Latency, Bandwidth, Reset, BlackHole, CutTo, CutFrom, Slicer:
		service, _, _ := strings.Cut(f.Target, "/")
		return []string{service}
	case PostgresTimeout: // the recorder copes
		return []string{needTime}
	case TopicGrown, Crowd:
		return nil
	}
	return []string{f.Target} // a service
}

// lookout looks once a second where everything stands, until the returned function is called.
func (w *world) lookout(ctx context.Context) (stop func() (stalls []watch.Stall, longest map[string]time.Duration)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o := &outlook{w: w, watch: watch.New(), adm: kadm.NewClient(w.client), waiting: map[task.Key]bool{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			samples, err := o.look(ctx)
			if err != nil {
				continue // a service is away: what cannot be seen does not count
			}
			for i, s := range o.watch.Look(time.Now(), samples, w.lacking.lacks) {
				if i < 5 { // the summary has all
					w.say("STANDS STILL: %s", s)
				}
			}
		}
	}()
	return func() ([]watch.Stall, map[string]time.Duration) {
		cancel()
		<-done
		return o.watch.Stalls(), o.watch.Longest()
	}
}

// outlook sees from outside where everything stands.
type outlook struct {
	w       *world
	watch   *watch.Watch
	adm     *kadm.Client
	taken   int               // submits that have been looked at
	waiting map[task.Key]bool // accepted, and unknown to Postgres when last asked
}

func (o *outlook) look(ctx context.Context) (all []watch.Sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, part := range []func(context.Context) ([]watch.Sample, error){o.partitions, o.callbacks, o.unfinished, o.unrecorded} {
		some, err := part(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// partitions says where the readers stand.
func (o *outlook) partitions(ctx context.Context) (all []watch.Sample, err error) {
	ends, err := o.adm.ListCommittedOffsets(ctx, o.w.taped()...)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for the ends of topics: %w", err)
	}
	look := func(stage, topic string, s watch.Sample) error {
		at, err := o.w.positions(ctx, o.adm, stage, topic)
		if err != nil {
			return err
		}
		for p, end := range ends[topicBase+topic] {
			s := s
			next := at[p]
			s.Name = fmt.Sprintf("%s of %s/%d", stage, topic, p)
			s.At = fmt.Sprintf("%d %s", next.offset, next.metadata)
			if end.Err == nil && end.Offset > next.offset {
				s.Left = fmt.Sprintf("%d records", end.Offset-next.offset)
			}
			all = append(all, s)
		}
		return nil
	}
	for _, r := range readers {
		s := watch.Sample{Kind: "reader", Needs: []string{needKafka, needRedis, r.stage}, Bound: boundReader}
		switch r.stage {
		case "router": // tasks wait in it for whatever runs them
			s.Kind, s.Bound = "router", boundTask
			s.Needs = append(s.Needs, needDevices, needPostgres, needTime, "batcher", "workers")
			if r.topic == stream.TasksNormal { // it has the tasks that stand
				s.Needs = append(s.Needs, needLateDevice)
			}
		case "workers":
			s.Needs = append(s.Needs, needDevices)
		}
		if err := look(r.stage, r.topic, s); err != nil {
			return nil, err
		}
	}
	for _, topic := range []string{stream.Events, stream.Results} {
		if err := look("audit", topic, watch.Sample{Kind: "recorder", Needs: []string{needKafka, needPostgres, "audit"}, Bound: boundRecorder}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// mostLooked bounds the tasks and callbacks that are looked at: those that are due first.
const mostLooked = 5000

// callbacks says which callbacks are due and not delivered.
func (o *outlook) callbacks(ctx context.Context) (all []watch.Sample, err error) {
	err = o.w.each(ctx, fmt.Sprintf(`SELECT callback_id, tenant, task_id, attempts, next_at::text FROM callbacks
		WHERE state = 'DUE' AND next_at <= now() ORDER BY next_at LIMIT %d`, mostLooked), func(scan func(...any) error) error {
		s := watch.Sample{Kind: "callback", Left: "a delivery", Needs: []string{needKafka, needPostgres, needTime, "callbacks"}, Bound: boundCallback}
		var attempts int
		var next string
		err := scan(&s.Name, &s.Key.Tenant, &s.Key.ID, &attempts, &next)
		s.Needs = append(s.Needs, stands(s.Key)...)
		s.At = fmt.Sprintf("attempt %d, due at %s", attempts, next)
		all = append(all, s)
		return err
	})
	return all, err
}

// unfinished says where the tasks stand that have not ended.
func (o *outlook) unfinished(ctx context.Context) (all []watch.Sample, err error) {
	err = o.w.each(ctx, fmt.Sprintf(`SELECT tenant, task_id, generation, state, attempt, seq FROM tasks
		WHERE state IN ('PENDING', 'ASSIGNED', 'RUNNING') ORDER BY submitted_at LIMIT %d`, mostLooked), func(scan func(...any) error) error {
		s := watch.Sample{Kind: "task", Left: "its end", Bound: boundTask}
		var generation, attempt, seq int
		var state string
		err := scan(&s.Key.Tenant, &s.Key.ID, &generation, &state, &attempt, &seq)
		s.Name, s.Needs = s.Key.String(), slices.Concat(wayOfTask, stands(s.Key))
		s.At = fmt.Sprintf("%s (generation %d, attempt %d, sequence %d)", state, generation, attempt, seq)
		all = append(all, s)
		return err
	})
	return all, err
}

var wayOfTask = []string{needKafka, needRedis, needPostgres, needTime, needDevices, "router", "batcher", "workers", "audit"}

// unrecorded says which tasks were accepted and are unknown to Postgres.
func (o *outlook) unrecorded(ctx context.Context) (all []watch.Sample, err error) {
	o.taken = o.w.load.acceptedSince(o.taken, o.waiting)
	tenants, ids := make([]string, 0, len(o.waiting)), make([]string, 0, len(o.waiting))
	for k := range o.waiting {
		tenants, ids = append(tenants, k.Tenant), append(ids, k.ID)
	}
	rows, err := o.w.pool.Query(ctx, `SELECT a.tenant, a.id FROM unnest($1::text[], $2::text[]) AS a (tenant, id)
		WHERE EXISTS (SELECT FROM tasks t WHERE t.tenant = a.tenant AND t.task_id = a.id)`, tenants, ids)
	if err != nil {
		return nil, fmt.Errorf("asking Postgres for accepted tasks: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var k task.Key
		if err := rows.Scan(&k.Tenant, &k.ID); err != nil {
			return nil, fmt.Errorf("asking Postgres for accepted tasks: %w", err)
		}
		delete(o.waiting, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("asking Postgres for accepted tasks: %w", err)
	}
	for k := range o.waiting {
		all = append(all, watch.Sample{Kind: "unrecorded task", Name: k.String(), Key: k, Left: "its first event", Needs: wayOfTask, Bound: boundTask})
	}
	return all, nil
}
