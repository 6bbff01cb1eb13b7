package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
)

const (
	outagePoll       = 250 * time.Millisecond // between two looks at the nodes while one does not answer
	outageReminder   = 5 * time.Second        // between two log lines while one does not answer
	evictionInterval = 30 * time.Second
)

// monitor looks after the connection to Redis.
//
//	          a command fails                all masters answer
//	(fine) ─────────────────▶ outage: ask ───────────────────────▶ (fine)
//	                            ▲      │ a master does not answer
//	                            └──────┘ log it, again every outageReminder
//
// In a Redis Cluster each failure also makes the client ask for the current masters. By itself the
// library asks only when a node redirects a command, which a dead node does not, or when its
// answer is old: a promoted replica would go unnoticed for a minute.
type monitor struct {
	rdb     redis.UniversalClient
	reload  func(context.Context) // asks for the current masters; nil if there is no cluster
	logger  *slog.Logger
	metrics *metrics.Device
	addr    string
	timeout time.Duration
	failed  chan struct{} // a node did not answer

	mu       sync.Mutex
	evicting string // the setting that makes Redis evict keys; empty: it does not
	evicted  int64  // keys that were evicted, as last counted; 0 before the first count
	counted  bool
}

// nodeFailed is called when a command got no answer, or could not be run because its slot has no
// master.
func (m *monitor) nodeFailed(ctx context.Context) {
	if m.reload != nil {
		m.reload(ctx) // in the background, and at most five times a second
	}
	select {
	case m.failed <- struct{}{}:
	default:
	}
}

// run reports outages and evicted keys until ctx ends.
func (m *monitor) run(ctx context.Context) {
	tick := time.NewTicker(evictionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.checkEviction(ctx)
		case <-m.failed:
			m.awaitRecovery(ctx)
		}
	}
}

// awaitRecovery returns when every master answers.
func (m *monitor) awaitRecovery(ctx context.Context) {
	began, logged := time.Now(), time.Time{}
	defer m.metrics.RedisDown.Set(0)
	tick := time.NewTicker(outagePoll)
	defer tick.Stop()
	for {
		silent, err := m.silentNodes(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if !logged.IsZero() {
				m.logger.Info("Redis answers again", "addr", m.addr, "after", time.Since(began).Round(time.Millisecond).String())
			}
			select {
			case <-m.failed: // what failed meanwhile is over, too
			default:
			}
			return
		case time.Since(logged) >= outageReminder:
			m.metrics.RedisDown.Set(1)
			m.logger.Warn("Redis does not answer: tasks are not routed until it does", "waiting_for", m.waitingFor(silent),
				"for", time.Since(began).Round(time.Millisecond).String(), "error", err)
			logged = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// waitingFor says what ends the outage.
func (m *monitor) waitingFor(silent []string) string {
	switch {
	case m.reload == nil:
		return m.addr
	case len(silent) == 0:
		return "any node of the Redis Cluster"
	}
	return "the master " + strings.Join(silent, ", ") + " of the Redis Cluster, or a replica to be promoted in its place"
}

// silentNodes pings the server, or all masters of a cluster as a node that answers names them, and
// returns those that do not answer, and why.
func (m *monitor) silentNodes(ctx context.Context) (silent []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	var mu sync.Mutex
	err = m.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		err := c.Ping(ctx).Err()
		if noAnswer(err) {
			mu.Lock()
			defer mu.Unlock()
			silent = append(silent, c.Options().Addr)
			return err
		}
		return nil // an answer, even if the user may not ping
	})
	slices.Sort(silent)
	return silent, err
}

// eachMaster calls fn for the server, or for all masters of a cluster at the same time.
func (m *monitor) eachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	switch c := m.rdb.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, fn)
	case *redis.Client:
		return fn(ctx, c)
	}
	return nil
}

// evictionRemedy is what makes Redis keep what Batchyard writes.
const evictionRemedy = "set maxmemory-policy to noeviction"

// checkEviction finds out whether Redis evicts keys. It does when maxmemory is set and
// maxmemory-policy is not noeviction. Then claims, credits, drained devices and overrides disappear
// while they are needed. A server that does not say is not reported.
func (m *monitor) checkEviction(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	var mu sync.Mutex
	policy, evicted := "", int64(0)
	err := m.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		memory, err := info(ctx, c, "memory")
		if err != nil {
			return err
		}
		stats, err := info(ctx, c, "stats")
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if p := memory["maxmemory_policy"]; memory["maxmemory"] != "" && memory["maxmemory"] != "0" && p != "" && p != "noeviction" {
			policy = p
		}
		n, _ := strconv.ParseInt(stats["evicted_keys"], 10, 64) //nolint:errcheck // 0 if it does not say
		evicted += n
		return nil
	})
	if err != nil {
		return // what was known stays
	}
	m.noteEviction(policy, evicted)
}

// noteEviction compares what Redis says with what it said before.
func (m *monitor) noteEviction(policy string, evicted int64) {
	m.mu.Lock()
	before, had, counted := m.evicting, m.evicted, m.counted
	m.evicting, m.evicted, m.counted = policy, evicted, true
	m.mu.Unlock()
	m.metrics.RedisMayEvict.Set(0)
	if policy != "" {
		m.metrics.RedisMayEvict.Set(1)
	}
	if counted && evicted > had { // else it was restarted, or has another master
		m.metrics.RedisEvicted.Add(float64(evicted - had))
		m.logger.Error("Redis has evicted keys: claims, credits and overrides may be among them, so tasks may run twice, or devices get more than their slots; "+evictionRemedy,
			"addr", m.addr, "keys", evicted-had, "maxmemory_policy", policy)
	}
	switch {
	case policy != "" && policy != before:
		m.logger.Warn("Redis is configured to evict keys when its memory is full, and Batchyard's may be among them; "+evictionRemedy, "addr", m.addr, "maxmemory_policy", policy)
	case policy == "" && before != "":
		m.logger.Info("Redis is no longer configured to evict keys", "addr", m.addr)
	}
}

func (m *monitor) note() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.evicting == "" {
		return ""
	}
	return fmt.Sprintf("Redis may evict keys (maxmemory-policy is %s); %s", m.evicting, evictionRemedy)
}

// maxInfo bounds the lines of an answer that are read.
const maxInfo = 500

// info reads one section of what a server says about itself.
func info(ctx context.Context, c *redis.Client, section string) (map[string]string, error) {
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && len(out) < maxInfo {
			out[k] = v
		}
	}
	return out, nil
}

// failureHook reports commands that a node did not answer. It sees each attempt, before the library
// tries again.
type failureHook struct{ failed func(context.Context) }

// DialHook implements redis.Hook.
func (h failureHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		h.check(ctx, err)
		return conn, err
	}
}

// ProcessHook implements redis.Hook.
func (h failureHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.check(ctx, err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h failureHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.check(ctx, err)
		return err
	}
}

func (h failureHook) check(ctx context.Context, err error) {
	if noAnswer(err) {
		h.failed(ctx)
	}
}

// noAnswer reports whether an error means that a node is gone, or cannot serve its keys for now. The
// caller giving up is not such an error.
func noAnswer(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, redis.ErrClosed) {
		return false
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	return slices.ContainsFunc([]string{"CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING"}, func(prefix string) bool {
		return redis.HasErrorPrefix(err, prefix)
	})
}
