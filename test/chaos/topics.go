package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/chaos/process"
)

// How long a topic may take to become idle before it is left alone, and to be recreated.
const (
	idleMost     = 20 * time.Second
	recreateMost = time.Minute
)

// recreate deletes tasks.low and creates it again, as an operator may do with a topic
// that is not in use. Offsets begin at 0 again: a reader that continues at an old one would
// skip what is written next, which would then be lost. What is in the topic when it is
// deleted is lost rightly, so it has to be idle first.
func (w *world) recreate(ctx, over context.Context) error {
	w.load.withoutLow(true)
	defer w.load.withoutLow(false)
	adm := kadm.NewClient(w.client)
	name := topicBase + stream.TasksLow
	idle, cancel := context.WithTimeout(over, idleMost)
	defer cancel()
	if err := process.Poll(idle, 100*time.Millisecond, func() error { return w.lowIdle(idle, adm) }); err != nil {
		w.say("skipped: recreating %s, which does not become idle: %v", name, err)
		w.leftOut.Add(1)
		return nil //nolint:nilerr // it is in use, which is no failure
	}
	ctx, cancel = context.WithTimeout(ctx, recreateMost)
	defer cancel()
	if _, err := adm.DeleteTopic(ctx, name); err != nil {
		w.say("deleting %s: %v", name, err) // perhaps it is deleted all the same
	}
	replication := int16(1)
	if w.cluster != nil {
		replication = 3
	}
	err := process.Poll(ctx, 100*time.Millisecond, func() error {
		_, err := adm.CreateTopic(ctx, partitions, replication, nil, name)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			topics, e := adm.ListTopics(ctx, name)
			if e == nil && topics.Has(name) && w.empty(ctx, adm, name) {
				return nil // an earlier try created it
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("creating %s again: %w", name, err)
	}
	w.tape.Forget(name)
	w.say("recreated %s", name)
	w.recreated = true
	return nil
}

// empty reports whether a topic begins at offset 0 and has no records.
func (w *world) empty(ctx context.Context, adm *kadm.Client, name string) bool {
	ends, err := adm.ListEndOffsets(ctx, name)
	if err != nil || ends.Error() != nil {
		return false
	}
	empty := true
	ends.Each(func(o kadm.ListedOffset) { empty = empty && o.Offset == 0 })
	return empty
}

// lowIdle returns why tasks.low must not be deleted yet, or nil.
func (w *world) lowIdle(ctx context.Context, adm *kadm.Client) error {
	runs, quiet := w.load.lowRuns()
	if !quiet {
		return errors.New("requests are in flight")
	}
	tenants, ids, gens := make([]string, len(runs)), make([]string, len(runs)), make([]int, len(runs))
	for i, r := range runs {
		tenants[i], ids[i], gens[i] = r.Tenant, r.ID, r.Generation
	}
	var missing int
	if err := w.pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[], $2::text[], $3::int[]) AS a (tenant, id, gen)
		WHERE NOT EXISTS (SELECT 1 FROM results r WHERE r.tenant = a.tenant AND r.task_id = a.id AND r.generation = a.gen)`, tenants, ids, gens).Scan(&missing); err != nil {
		return fmt.Errorf("asking Postgres: %w", err)
	}
	if missing > 0 {
		return fmt.Errorf("%d tasks of low priority have not ended", missing)
	}
	lags, err := adm.Lag(ctx)
	if err != nil {
		return fmt.Errorf("asking Kafka for the groups' lag: %w", err)
	}
	for _, l := range lags.Sorted() {
		for _, p := range l.Lag[topicBase+stream.TasksLow] {
			if p.Lag != 0 {
				return fmt.Errorf("the group %s is %d records behind", l.Group, p.Lag)
			}
		}
	}
	return nil
}
