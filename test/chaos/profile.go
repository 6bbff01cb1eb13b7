package chaos

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/harness"
)

// profile is what distinguishes one kind of run from another.
type profile struct {
	name      string
	seed      uint64
	length    time.Duration
	rate      int // tasks per second
	plan      []Fault
	settings  map[string]any
	broker    []string      // settings of the broker
	retention time.Duration // of all topics but dlq and checkpoints; 0: as the program creates them
	waits     time.Duration // the longest not_before of a task

	silentHosts bool // there are callbacks that are not answered for a while
}

const (
	// SessionTimeout is how long a process may be stopped before its partitions move to
	// others.
	SessionTimeout = 6 * time.Second

	rebalanceTimeout = 6 * time.Second
	requestTimeout   = 4 * time.Second // of requests to Kafka
	leaseTTL         = 4 * time.Second
	partitions       = 4
	grownTo          = 6
)

// settings returns settings with short timeouts, so that all of them expire within a
// run.
func settings() map[string]any {
	retries := []string{"200ms", "500ms"}
	for range 90 {
		retries = append(retries, "1s")
	}
	return map[string]any{
		"log.level": "info", "kafka.partitions": partitions, "kafka.replication": 1, "kafka.topic_prefix": topicBase,
		"kafka.session_timeout": SessionTimeout.String(), "kafka.heartbeat_interval": "300ms", "kafka.rebalance_timeout": rebalanceTimeout.String(),
		"kafka.commit_interval": "100ms", "kafka.fetch_wait": "250ms", "kafka.dial_timeout": "3s", "kafka.request_timeout": requestTimeout.String(),
		"redis.timeout": "1s", "redis.prefix": "chaos:", "postgres.timeout": "3s", "postgres.max_conns": 6, "task.recent_ttl": "5s",
		"devices.lease_ttl": leaseTTL.String(), "devices.heartbeat_timeout": "4s", "devices.reader_timeout": "6s", "router.refresh_interval": "250ms", "router.claim_ttl": "5s", "router.max_pending_tasks": standingWindow,
		"workers.request_timeout": "6s", "workers.backoff_min": "20ms", "workers.backoff_max": "1s", "workers.breaker_open": "500ms", "workers.breaker_open_max": "2s",
		"workers.report_interval": "200ms", "workers.rebalance_every": "1s", "workers.drain_timeout": "5s",
		"callbacks.allow_private": true, "callbacks.secret_env": harness.SecretEnv, "callbacks.timeout": "2s", "callbacks.per_host": 32, "callbacks.retries": retries,
		"status.poll_interval": "5s", "audit.write_timeout": "10s", "audit.lost_after": "10s", "api.submit_timeout": "6s", "drain_timeout": "15s",
		"api.listen": "127.0.0.1:0", "ops.listen": "127.0.0.1:0",
	}
}

// newChaos returns a run in which much breaks at the same time.
func newChaos(seed uint64, length time.Duration, rate int) *profile {
	p := &profile{name: "chaos", seed: seed, length: length, rate: rate, settings: settings(), waits: 4 * time.Second}
	if *many {
		p.plan = clustered.plan(seed, length, deviceIDs(), nil)
	} else {
		p.plan = Plan(seed, length, deviceIDs())
	}
	return p
}

// newSoak returns a run that compresses a month of operation: what takes days takes seconds.
func newSoak(seed uint64, length time.Duration, rate int) *profile {
	p := &profile{name: "soak", seed: seed, length: length, rate: rate, settings: settings(), retention: soakRetention(length), silentHosts: true}
	p.waits = 2 * p.retention // so that they are parked, and what is parked is written again
	p.plan = soakPlan(seed, length, p.retention, deviceIDs())
	maps.Copy(p.settings, map[string]any{"audit.maintenance": "5s", "stall_timeout": "20s", "audit.lost_after": "8s",
		"callbacks.concurrency": silentSlots, "callbacks.per_tenant": silentSlots * 3 / 4})
	// Kafka looks for old segments every second, and deletes their files at once.
	p.broker = []string{"log.retention.check.interval.ms=1000", "log.initial.task.delay.ms=500", "log.segment.delete.delay.ms=500"}
	return p
}

// shorten lets Kafka delete records soon, in small segments.
func (w *world) shorten(ctx context.Context) error {
	if w.profile.retention == 0 {
		return nil
	}
	for _, t := range stream.Topics {
		keep := w.profile.retention
		switch t.Name {
		case stream.DLQ, stream.Checkpoints:
			continue
		case stream.TasksParked:
			keep *= 2
		}
		var change []kadm.AlterConfig
		for name, value := range map[string]int64{"retention.ms": keep.Milliseconds(), "segment.ms": (w.profile.retention / 8).Milliseconds(), "segment.bytes": 1 << 20} {
			text := strconv.FormatInt(value, 10)
			change = append(change, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &text})
		}
		got, err := kadm.NewClient(w.client).AlterTopicConfigs(ctx, change, topicBase+t.Name)
		if err != nil {
			return fmt.Errorf("changing the settings of %s: %w", t.Name, err)
		}
		for _, r := range got {
			if r.Err != nil {
				return fmt.Errorf("changing the settings of %s: %w (%s)", t.Name, r.Err, r.ErrMessage)
			}
		}
	}
	return nil
}
