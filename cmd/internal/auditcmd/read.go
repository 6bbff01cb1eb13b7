package auditcmd

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// searchFlags are the flags of commands that choose rows of the audit log.
type searchFlags struct {
	postgres     string
	f            query.Filter
	since, until string
}

func (s *searchFlags) flags(c *cli.Env, cmd *cobra.Command) {
	c.ConfigFlag(cmd)
	postgresFlag(c, cmd, &s.postgres)
	flags := cmd.Flags()
	for _, f := range []struct {
		to         *string
		name, what string
	}{
		{&s.f.Tenant, "tenant", "of this `tenant`"}, {&s.f.Task, "task", "about the task of this `id`"}, {&s.f.Job, "job", "about tasks of this `job`"},
		{&s.f.Batch, "batch", "about the batch of this `id`"}, {&s.f.Device, "device", "about this `device`"},
		{&s.f.Actor, "actor", "by this `name`: a user, a device, or stage@host-pid"},
		{&s.f.Source, "source", "from this `address`, with its port or without; or kafka:topic"},
		{&s.f.Outcome, "outcome", "with this `outcome`: ok, failed or refused"}, {&s.f.Class, "class", "with this `class` of error"},
		{&s.f.Model, "model", "with this `model`"}, {&s.f.Trace, "trace", "of this trace `id`"},
	} {
		flags.Var(filterValue{(*givenValue)(f.to)}, f.name, "only rows "+f.what)
	}
	flags.StringArrayVar(&s.f.Actions, "action", nil, "only this `action`, or a pattern such as task.*; repeatable")
	flags.Var((*givenValue)(&s.since), "since", "only from this `time`: 2h, 7d, 2026-01-31, or 2026-01-31T12:00:00+01:00")
	flags.Var((*givenValue)(&s.until), "until", "only before this `time`")
	cli.CompleteFlag(cmd, "outcome", []string{"ok", "failed", "refused"})
	actions := make([]string, len(task.Actions))
	for i, a := range task.Actions {
		actions[i] = string(a.Action)
	}
	cli.CompleteFlag(cmd, "action", actions)
}

// filterValue is the value of a filter, which must be text that Postgres accepts.
type filterValue struct{ *givenValue }

// Set stores the value.
func (n filterValue) Set(s string) error {
	if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
		return errors.New("it must be UTF-8 text without NUL bytes")
	}
	return n.givenValue.Set(s)
}

// search returns the filter that the flags describe.
func (s *searchFlags) search(now time.Time) (f query.Filter, err error) {
	f = s.f
	if f.Since, err = parseMoment("since", s.since, now); err != nil {
		return f, err
	}
	if f.Until, err = parseMoment("until", s.until, now); err != nil {
		return f, err
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return f, cli.UsageError("--since %s is not before --until %s", s.since, s.until)
	}
	if _, err := query.ExpandActions(f.Actions); err != nil {
		return f, cli.WithCode(cli.ExitUsage, fmt.Errorf("--action: %w", err))
	}
	if f.Outcome != "" && !slices.Contains([]string{"ok", "failed", "refused"}, f.Outcome) {
		return f, cli.UsageError("unknown outcome %q: use ok, failed or refused", f.Outcome)
	}
	return f, nil
}

// tooLong matches a time span that looks right: if it could not be parsed, it is
// too long.
var tooLong = regexp.MustCompile(`^\d+[dhms]$`)

// parseMoment reads a time: a day, a time with its zone, or how long ago it was.
func parseMoment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, time.UTC); err == nil {
		return t, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if tooLong.MatchString(s) {
		return time.Time{}, cli.UsageError("--%s %s is too long ago; %dd is the most", flag, s, math.MaxUint16)
	}
	return time.Time{}, cli.UsageError("--%s: invalid time %q: write how long ago (90s, 2h, 7d), a UTC day (2026-01-31), or RFC 3339 (2026-01-31T12:00:00Z)", flag, s)
}
