package producer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/task"
)

// jobIndex binds the names of jobs to the fingerprints of their files in Redis, for all processes.
// Redis may lose the bindings: Postgres has them too, a little later.
type jobIndex struct {
	rdb    redis.UniversalClient // nil: names are checked in Postgres only
	ttl    time.Duration
	prefix string
}

func (x *jobIndex) key(tenant, job string) string {
	sum := sha256.Sum256([]byte(tenant + "\x00" + job))
	return x.prefix + "job:" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// bind binds the name of a job to its file, unless another process has bound it to another one,
// which is the error, a *task.JobConflictError. Binding it again extends the binding.
func (x *jobIndex) bind(ctx context.Context, s *task.JobSpec, now time.Time) error {
	key, value := x.key(s.Tenant, s.JobID), fmt.Sprintf("%s %d %d", s.SHA256, now.Unix(), s.Tasks)
	for {
		set, err := x.rdb.SetNX(ctx, key, value, x.ttl).Result()
		if err != nil {
			return fmt.Errorf("binding job %s in Redis: %w", s.JobID, err)
		}
		if set {
			return nil
		}
		have, err := x.rdb.GetEx(ctx, key, x.ttl).Result()
		if errors.Is(err, redis.Nil) {
			continue // it expired in between
		}
		if err != nil {
			return fmt.Errorf("reading the binding of job %s in Redis: %w", s.JobID, err)
		}
		if b := parseBinding(have); b.sum != s.SHA256 {
			return &task.JobConflictError{JobID: s.JobID, SHA256: task.Clip(b.sum), SubmittedAt: b.at}
		}
		return nil
	}
}

// binding is what Redis has of a job.
type binding struct {
	sum   string
	at    time.Time
	tasks int64
}

// parseBinding reads a value of Redis. One that is not ours has zeros.
func parseBinding(s string) binding {
	sum, rest, _ := strings.Cut(s, " ")
	at, tasks, _ := strings.Cut(rest, " ")
	seconds, _ := strconv.ParseInt(at, 10, 64)
	n, _ := strconv.ParseInt(tasks, 10, 64)
	return binding{sum, time.Unix(seconds, 0).UTC(), n}
}

// RecentJob returns a job that was announced recently and may not be in Postgres yet: it
// has no known tasks. ok is false when Redis does not know it, which does not mean that it does not exist.
func (p *Producer) RecentJob(ctx context.Context, k task.Key) (j *task.Job, ok bool, err error) {
	if p.jobs.rdb == nil {
		return nil, false, nil
	}
	have, err := p.jobs.rdb.Get(ctx, p.jobs.key(k.Tenant, k.ID)).Result()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("asking Redis for job %s: %w", k.ID, err)
	}
	b := parseBinding(have)
	return &task.Job{JobID: k.ID, Tenant: k.Tenant, State: task.JobRunning, Total: b.tasks, Tasks: map[task.State]int64{}, SHA256: b.sum, At: &b.at}, true, nil
}

// jobDetail is the detail of the event job.submitted. The URL of the callback may hold secrets, so
// the audit log has its host only.
type jobDetail struct {
	task.JobSpec
	CallbackHost string `json:"callback_host,omitempty"`
}

// maxHost is how much of a host's name the detail has room for.
const maxHost = 255

// AnnounceJob binds the name of a job to its file and writes the event job.submitted. It returns nil
// once all in-sync replicas have the event. A *task.JobConflictError means that the name belongs to
// another file, a *task.FieldError that the announcement is invalid; then nothing was written. While
// Redis does not answer, only Postgres knows other files, which the caller asks before.
func (p *Producer) AnnounceJob(ctx context.Context, s *task.JobSpec, o task.Origin) error {
	spec := *s
	spec.SHA256 = strings.ToLower(spec.SHA256)
	if err := spec.Validate(); err != nil {
		return err
	}
	now := clock.Now().UTC()
	if p.jobs.rdb != nil {
		var other *task.JobConflictError
		err := p.askRedis(ctx, func(ctx context.Context) error {
			err := p.jobs.bind(ctx, &spec, now)
			if errors.As(err, &other) {
				return nil // Redis did answer
			}
			return err
		})
		if other != nil {
			return other
		}
		if err != nil {
			p.warnJobs.Do(func() {
				p.logger.Warn("Redis does not know which file a job's name belongs to: until it answers, only jobs that Postgres knows are protected from another file", "error", err)
			})
		}
	}
	detail := jobDetail{JobSpec: spec}
	e := task.Event{
		Time: now, Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: spec.Tenant,
		ActorType: task.ActorUser, ActorID: o.Actor, SourceAddr: o.Addr, UserAgent: o.UserAgent,
		ResourceType: "job", ResourceID: spec.JobID, JobID: spec.JobID,
	}
	if spec.Callback != nil {
		e.CallbackURL = spec.Callback.URL
		if u, err := url.Parse(spec.Callback.URL); err == nil {
			detail.CallbackHost = u.Host[:min(len(u.Host), maxHost)]
		}
		detail.Callback = nil
	}
	return p.RecordNow(ctx, e, detail)
}
