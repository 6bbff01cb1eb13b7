package chaos

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/chaos/process"
)

// Limits on draining. On a slow machine it may take long, so it continues after
// drainLeast as long as there is progress every drainStill, up to drainMost.
const (
	drainLeast = 90 * time.Second
	drainStill = 45 * time.Second
	drainMost  = 5 * time.Minute
)

// drain waits until nothing is left to do: all accepted tasks have ended, but for those that stand, and
// everything written is recorded, delivered and committed.
func (w *world) drain(ctx context.Context, accepted []task.Key) error {
	ctx, cancel := context.WithTimeout(ctx, drainMost)
	defer cancel()
	accepted = slices.DeleteFunc(slices.Clone(accepted), func(k task.Key) bool { return k.Tenant == w.standing })
	calm, began, moved := 0, time.Now(), time.Now()
	var last string
	err := process.Poll(ctx, 250*time.Millisecond, func() error {
		err := w.drained(ctx, accepted)
		if w.profile.retention > 0 && errors.Is(err, errNoResult) {
			if accepted, err = w.known(ctx, accepted); err == nil {
				err = w.drained(ctx, accepted)
			}
		}
		if err == nil {
			if calm++; calm < 4 { // stragglers would show up soon
				return errors.New("waiting for stragglers")
			}
			return nil
		}
		calm = 0
		if text := err.Error(); text != last {
			last, moved = text, time.Now()
		}
		if time.Since(began) > drainLeast && time.Since(moved) > drainStill {
			cancel()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("still not drained %.0f s after everything was healed: %s", time.Since(began).Seconds(), last)
	}
	return nil
}

var errNoResult = errors.New("accepted tasks have no result")

// known returns the tasks that Postgres can know, in spite of the holes.
func (w *world) known(ctx context.Context, accepted []task.Key) ([]task.Key, error) {
	var h check.History
	w.tape.Into(&h)
	if err := w.collectHoles(ctx, &h); err != nil {
		return accepted, err
	}
	vanished := check.Vanished(&h)
	return slices.DeleteFunc(slices.Clone(accepted), func(k task.Key) bool { return vanished[k] }), nil
}

func (w *world) drained(ctx context.Context, accepted []task.Key) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var open, due int
	if err := w.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM tasks WHERE state NOT IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED') AND tenant <> $1),
		(SELECT count(*) FROM callbacks WHERE state = 'DUE')`, w.standing).Scan(&open, &due); err != nil {
		return fmt.Errorf("asking Postgres: %w", err)
	}
	if open > 0 {
		return fmt.Errorf("%d tasks have not ended", open)
	}
	tenants, ids := make([]string, len(accepted)), make([]string, len(accepted))
	for i, k := range accepted {
		tenants[i], ids[i] = k.Tenant, k.ID
	}
	var missing int
	if err := w.pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[], $2::text[]) AS a (tenant, id)
		WHERE NOT EXISTS (SELECT 1 FROM results r WHERE r.tenant = a.tenant AND r.task_id = a.id)`, tenants, ids).Scan(&missing); err != nil {
		return fmt.Errorf("asking Postgres: %w", err)
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d %w", missing, len(accepted), errNoResult)
	}
	if due > 0 {
		return fmt.Errorf("%d callbacks are due", due)
	}
	return w.caughtUp(ctx)
}

// caughtUp returns an error naming a stage that still has records to read, or nil.
func (w *world) caughtUp(ctx context.Context) error {
	adm := kadm.NewClient(w.client)
	ends, err := adm.ListEndOffsets(ctx, topicBase+stream.Events, topicBase+stream.Results)
	if err != nil {
		return fmt.Errorf("asking Kafka for the ends of topics: %w", err)
	}
	rows, err := w.pool.Query(ctx, "SELECT topic, partition, next_offset FROM stream_offsets")
	if err != nil {
		return fmt.Errorf("asking Postgres: %w", err)
	}
	defer rows.Close()
	next := map[string]int64{}
	for rows.Next() {
		var topic string
		var p int32
		var n int64
		if err := rows.Scan(&topic, &p, &n); err != nil {
			return fmt.Errorf("asking Postgres: %w", err)
		}
		next[fmt.Sprint(topicBase+topic, p)] = n
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("asking Postgres: %w", err)
	}
	behind := ""
	ends.Each(func(o kadm.ListedOffset) {
		if n := next[fmt.Sprint(o.Topic, o.Partition)]; n < o.Offset && o.Offset > 0 {
			behind = fmt.Sprintf("the recorder is at %d of %d in %s/%d", n, o.Offset, o.Topic, o.Partition)
		}
	})
	if behind != "" {
		return errors.New(behind)
	}
	lags, err := adm.Lag(ctx)
	if err != nil {
		return fmt.Errorf("asking Kafka for the groups' lag: %w", err)
	}
	for _, l := range lags.Sorted() {
		if err := l.Error(); err != nil {
			return fmt.Errorf("asking Kafka for the lag of %s: %w", l.Group, err)
		}
		if w.standing != "" && (strings.HasSuffix(l.Group, ".router."+stream.TasksNormal) || strings.HasSuffix(l.Group, ".router."+stream.TasksParked)) {
			continue // tasks that stand hold up its commits
		}
		if n := l.Lag.Total(); n > 0 && !strings.HasSuffix(l.Group, "audit") { // its offsets are in Postgres
			return fmt.Errorf("the group %s is %d records behind", l.Group, n)
		}
	}
	return nil
}

// collect reads the state of the services into the history.
func (w *world) collect(ctx context.Context, h *check.History) error {
	if err := w.tape.Await(ctx, kadm.NewClient(w.client), w.taped()...); err != nil {
		return err
	}
	w.tape.Into(h)
	w.removed.into(h)
	return errors.Join(w.collectSQL(ctx, h), w.collectHoles(ctx, h))
}

func (w *world) each(ctx context.Context, sql string, scan func(func(...any) error) error) error {
	rows, err := w.pool.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("running %q: %w", sql, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows.Scan); err != nil {
			return fmt.Errorf("running %q: %w", sql, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("running %q: %w", sql, err)
	}
	return nil
}

func (w *world) collectSQL(ctx context.Context, h *check.History) error {
	return errors.Join(
		w.each(ctx, "SELECT tenant, task_id, generation, state, fingerprint FROM tasks", func(scan func(...any) error) error {
			var r check.Row
			var print []byte
			err := scan(&r.Run.Tenant, &r.Run.ID, &r.Run.Generation, &r.State, &print)
			copy(r.Print[:], print)
			h.Tasks = append(h.Tasks, r)
			return err
		}),
		w.each(ctx, "SELECT tenant, task_id, generation, state, coalesce(output::text, ''), fingerprint, coalesce(error_class, '') = 'lost' FROM results", func(scan func(...any) error) error {
			var r check.Row
			var output string
			var print []byte
			err := scan(&r.Run.Tenant, &r.Run.ID, &r.Run.Generation, &r.State, &output, &print, &r.Lost)
			copy(r.Print[:], print)
			r.Output = sha256.Sum256([]byte(output))
			h.Results = append(h.Results, r)
			return err
		}),
		w.each(ctx, "SELECT relation, tenant, task_id, generation, op, coalesce(before, ''), coalesce(after, ''), again, at FROM chaos_changes ORDER BY n", func(scan func(...any) error) error {
			var c check.Change
			err := scan(&c.Table, &c.Run.Tenant, &c.Run.ID, &c.Run.Generation, &c.Op, &c.From, &c.To, &c.Again, &c.At)
			h.Changes = append(h.Changes, c)
			return err
		}),
		w.each(ctx, "SELECT callback_id, tenant, task_id, generation, state FROM callbacks WHERE task_id IS NOT NULL", func(scan func(...any) error) error {
			var d check.Due
			err := scan(&d.ID, &d.Run.Tenant, &d.Run.ID, &d.Run.Generation, &d.State)
			h.Callbacks = append(h.Callbacks, d)
			return err
		}),
		w.each(ctx, "SELECT src_partition, src_offset, src_index, action, tenant, coalesce(task_id, '') FROM audit_log WHERE src_topic = 'events' AND action <> 'audit.rows_recorded'", func(scan func(...any) error) error {
			var e check.Event
			err := scan(&e.Partition, &e.Offset, &e.Index, &e.Action, &e.Key.Tenant, &e.Key.ID)
			h.Rows = append(h.Rows, e)
			return err
		}))
}

// taped returns the names of the topics that are on the tape.
func (w *world) taped() (names []string) {
	for _, t := range stream.Topics {
		if t.Name != stream.Checkpoints {
			names = append(names, topicBase+t.Name)
		}
	}
	return names
}

// read calls take with each record that a topic holds now.
func (w *world) read(ctx context.Context, topic string, take func(*kgo.Record) error) error {
	name := topicBase + topic
	ends, err := kadm.NewClient(w.client).ListEndOffsets(ctx, name)
	if err != nil {
		return fmt.Errorf("asking Kafka for the end of %s: %w", topic, err)
	}
	starts, err := kadm.NewClient(w.client).ListStartOffsets(ctx, name)
	if err != nil {
		return fmt.Errorf("asking Kafka for the beginning of %s: %w", topic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if start, _ := starts.Lookup(o.Topic, o.Partition); o.Offset > start.Offset { // else there is nothing to wait for
			left[o.Partition] = o.Offset
		}
	})
	c, err := kgo.NewClient(kgo.SeedBrokers(w.brokers("direct")...), kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), // the last record may be the end of a transaction
		kgo.FetchMaxBytes(32<<20), kgo.BrokerMaxReadBytes(64<<20), kgo.FetchMaxPartitionBytes(16<<20))
	if err != nil {
		return fmt.Errorf("reading %s: %w", topic, err)
	}
	defer c.Close()
	for len(left) > 0 {
		fetches := c.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("reading %s: %d partitions are not finished: %w", topic, len(left), ctx.Err())
		}
		for _, r := range fetches.Records() {
			if !r.Attrs.IsControl() {
				if err := take(r); err != nil {
					return fmt.Errorf("reading %s/%d@%d: %w", topic, r.Partition, r.Offset, err)
				}
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return nil
}

// idle returns the figures of all processes. If before is given, it waits until they
// are close to those, which never happens if there is a leak.
func (w *world) idle(ctx context.Context, before map[string][2]int) (map[string][2]int, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	out := map[string][2]int{}
	err := process.Poll(ctx, 500*time.Millisecond, func() error {
		now := map[string][2]int{}
		var more error
		for _, p := range w.all() {
			f, err := p.Figures(ctx)
			if err != nil {
				return err
			}
			now[p.Name] = f
			if b, ok := before[p.Name]; ok && (f[0] > b[0]+check.Slack || f[1] > b[1]+check.Slack) {
				more = fmt.Errorf("%s has %v goroutines and files, up from %v", p.Name, f, b)
			}
		}
		out = now
		return more
	})
	if len(out) == 2*len(Stages) {
		return out, nil // Check compares them
	}
	return out, err
}

// credits waits for the leases to expire and returns the credits still in use.
func (w *world) credits(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, leaseTTL+6*time.Second)
	defer cancel()
	credits := store.NewCredits(w.rdb, store.Config{LeaseTTL: leaseTTL}, "chaos:")
	var left []string
	_ = process.Poll(ctx, 250*time.Millisecond, func() error {
		left = nil
		// Any acquire call first reclaims expired leases.
		if _, err := credits.AcquireFor(ctx, "chaos", nil, []device.Ask{{Pool: "none/single", N: 0}}); err != nil {
			left = []string{"credits: " + err.Error()}
			return err
		}
		for _, key := range []string{"used", "leases"} {
			m, err := w.rdb.HGetAll(ctx, "chaos:{credits}:"+key).Result()
			if err != nil {
				left = append(left, "credits: "+err.Error())
			}
			for k, v := range m {
				left = append(left, fmt.Sprintf("credits: %s of %s is %s", key, k, v))
			}
		}
		if len(left) > 0 {
			return errors.New(left[0])
		}
		return nil
	})
	return left
}

// sessions waits until the program has at most the given number of Postgres sessions,
// without any long transaction. It returns the offending sessions.
func (w *world) sessions(ctx context.Context, most int) (left []string) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	_ = process.Poll(ctx, 200*time.Millisecond, func() error {
		left = nil
		var all []string
		err := w.each(ctx, `SELECT format('session %s of Postgres from %s, %s since %s, in a transaction for %s: %s', pid, client_port, state,
			state_change, now() - xact_start, left(query, 200)), coalesce(xact_start < now() - interval '20s', false)
			FROM pg_stat_activity WHERE datname = 'chaos' AND application_name <> 'chaos' AND backend_type = 'client backend'`, func(scan func(...any) error) error {
			var text string
			var stuck bool
			err := scan(&text, &stuck)
			all = append(all, text)
			if stuck {
				left = append(left, text)
			}
			return err
		})
		if err != nil {
			left = append(left, err.Error())
		}
		if len(all) > most {
			left = append(left, fmt.Sprintf("%d Postgres sessions, but at most %d are allowed", len(all), most))
			left = append(left, all...)
		}
		if len(left) > 0 {
			return errors.New(left[0])
		}
		return nil
	})
	return left
}

// end stops all processes and records what they leave behind.
func (w *world) end(ctx context.Context, h *check.History, before, after map[string][2]int) {
	// The recorders end last, when they have recorded what the others wrote as they stopped.
	isRecorder := func(p *process.Process) bool { return strings.HasPrefix(p.Name, "audit-") }
	all := w.all()
	w.endAll(h, slices.DeleteFunc(slices.Clone(all), isRecorder), before, after)
	short, stop := context.WithTimeout(ctx, 30*time.Second)
	if err := process.Poll(short, 200*time.Millisecond, func() error { return w.caughtUp(short) }); err != nil {
		h.Left = append(h.Left, "after all but the recorders had ended: "+err.Error())
	}
	stop()
	w.endAll(h, slices.DeleteFunc(slices.Clone(all), func(p *process.Process) bool { return !isRecorder(p) }), before, after)
	for _, p := range w.gone {
		h.Processes = append(h.Processes, check.Process{Name: p.Name, Crash: p.Crash()})
	}
	h.Left = append(h.Left, w.sessions(ctx, 0)...)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	groups, err := kadm.NewClient(w.client).DescribeGroups(ctx)
	if err != nil {
		h.Left = append(h.Left, "asking Kafka for its groups: "+err.Error())
		return
	}
	for _, g := range groups.Sorted() {
		if len(g.Members) > 0 {
			h.Left = append(h.Left, fmt.Sprintf("group %s still has %d members", g.Group, len(g.Members)))
		}
	}
}

// endAll ends processes and notes how they ended.
func (w *world) endAll(h *check.History, all []*process.Process, before, after map[string][2]int) {
	var wg sync.WaitGroup
	out := make([]check.Process, len(all))
	for i, p := range all {
		wg.Go(func() {
			b, a := before[p.Name], after[p.Name]
			how := syscall.SIGTERM
			if a[0] > b[0]+check.Slack {
				how = syscall.SIGQUIT // its log then says what the goroutines are doing
			}
			code, hung := p.End(how, 30*time.Second)
			if hung {
				p.NoteHang()
			}
			out[i] = check.Process{Name: p.Name, Exit: code, Crash: p.Crash(), Goroutines: [2]int{b[0], a[0]}, Descriptors: [2]int{b[1], a[1]}}
		})
	}
	wg.Wait()
	h.Processes = append(h.Processes, out...)
}

// trace returns everything that Kafka and the audit log know about one task.
func (w *world) trace(ctx context.Context, key task.Key) string {
	var b strings.Builder
	for _, topic := range []string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow, stream.TasksParked, stream.Results, stream.DLQ} {
		err := w.read(ctx, topic, func(r *kgo.Record) error {
			if strings.Contains(string(r.Value), `"`+key.ID+`"`) && strings.Contains(string(r.Value), `"`+key.Tenant+`"`) {
				fmt.Fprintf(&b, "  %s  %s/%d@%d  %s\n", r.Timestamp.UTC().Format("15:04:05.000"), topic, r.Partition, r.Offset, clip(string(r.Value), 600))
			}
			return nil
		})
		if err != nil {
			fmt.Fprintf(&b, "  %v\n", err)
		}
	}
	err := w.read(ctx, stream.Events, func(r *kgo.Record) error {
		events, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
		for i, e := range events {
			if e.Tenant == key.Tenant && e.TaskID == key.ID {
				fmt.Fprintf(&b, "  %s  events/%d@%d[%d]  %s by %s from %s attempt %d device %s %s %s\n", e.Time.UTC().Format("15:04:05.000"), r.Partition, r.Offset, i,
					e.Action, e.ActorID, e.SourceAddr, e.Attempt, e.DeviceID, e.ErrorClass, clip(string(e.Detail), 300))
			}
		}
		return err
	})
	if err != nil {
		fmt.Fprintf(&b, "  %v\n", err)
	}
	rows, err := w.pool.Query(ctx, `SELECT to_char(ingested_at AT TIME ZONE 'UTC', 'HH24:MI:SS.MS') || '  audit_log ' || src_topic || '/' || src_partition || '@' || src_offset || '[' || src_index || ']  ' || action
		FROM audit_log WHERE tenant = $1 AND task_id = $2 UNION ALL
		SELECT to_char(at AT TIME ZONE 'UTC', 'HH24:MI:SS.MS') || '  ' || relation || ' ' || op || ' ' || coalesce(before, '') || ' → ' || coalesce(after, '') FROM chaos_changes WHERE tenant = $1 AND task_id = $2 ORDER BY 1`, key.Tenant, key.ID)
	if err != nil {
		return b.String() + "  " + err.Error()
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if rows.Scan(&s) == nil {
			fmt.Fprintf(&b, "  %s\n", s)
		}
	}
	if err := rows.Err(); err != nil {
		fmt.Fprintf(&b, "  %v\n", err)
	}
	return b.String()
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
