package auditcmd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// The header of a live table comes before its rows, and stands above them all the same.
func TestTailIsAligned(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	w, err := newRowWriter(c, &rowFlags{live: true})
	require.NoError(t, err)
	require.NoError(t, w.flush())
	for i, a := range task.Actions {
		require.NoError(t, w.row(&query.Row{
			Time: noon, Action: string(a.Action), Outcome: "refused", ErrorClass: string(task.ErrorClasses[i%len(task.ErrorClasses)]), Tenant: "default",
			TaskID: "0199f3c1-7d3e-7b4e-9d5e-0123456789ab", DeviceID: "gpu-1", Attempt: 3, ActorID: "router@5d7f9c6b8-x2x4z-31337",
			SourceAddr: "203.0.113.200:65535", DurationMS: 1234.567, Detail: []byte("{}"),
		}))
	}
	got := strings.Split(strings.TrimSpace(b.String()), "\n")
	require.Len(t, got, 1+len(task.Actions))
	for _, line := range got[1:] {
		for name, value := range map[string]string{"OUTCOME": "refused", "TENANT": "default", "DEVICE ID": "gpu-1", "DURATION MS": "1234.567", "DETAIL": "{}"} {
			require.Truef(t, strings.HasPrefix(line[strings.Index(got[0], name):], value), "%s\n%s", got[0], line)
		}
	}
}

func TestFindingsAreCounted(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	one := verify.Finding{Reason: verify.Missing, Topic: "events", Seq: 363, To: 364, Detail: "gone"}
	require.NoError(t, showVerified(c, &verify.Report{Rows: 1, Count: 1, Checkpoints: 1, Chains: []verify.ChainReport{{Topic: "events"}}, Findings: []verify.Finding{one}}, nil))
	require.Contains(t, b.String(), "MISSING events/0 rows 363 to 364: gone\n")
	require.Contains(t, b.String(), "1 row in 1 chain, 0 dropped by retention, 1 checkpoint, 0 statements: 1 finding\n")
	require.Equal(t, "MISSING events/0 row 5: gone", describeFinding(&verify.Finding{Reason: verify.Missing, Topic: "events", Seq: 5, Detail: "gone"}))
}

func TestWhoseErrorItIs(t *testing.T) {
	t.Parallel()
	refused, missing := &pgconn.PgError{Code: "42501", Message: "permission denied for table tasks"}, &pgconn.PgError{Code: "42P01", Message: `relation "tasks" does not exist`}
	require.ErrorContains(t, logError(fmt.Errorf("reading: %w", refused)), "needs the role batchyard_auditor")
	require.ErrorContains(t, logError(fmt.Errorf("reading: %w", missing)), "run `batchyard migrate up`")
	for _, other := range []error{nil, os.ErrPermission, errors.New("open /x: permission denied"), errors.New("the topic does not exist"), &pgconn.PgError{Code: "57014", Message: "canceling statement"}} {
		require.Equal(t, other, logError(other))
	}
}

func TestNoCellIsAFormula(t *testing.T) {
	t.Parallel()
	for cell, want := range map[string]string{"": "", "plain": "plain", "=1+1": "'=1+1", "-2": "'-2", "+x": "'+x", "@x": "'@x", "\tx": "'\tx", "'=": "'=", "a=b": "a=b"} {
		require.Equal(t, want, noFormula(cell))
	}
}

func TestMoments(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"":                          {},
		"2h":                        now.Add(-2 * time.Hour),
		"7d":                        now.AddDate(0, 0, -7),
		"2026-01-31":                time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T12:00:00+01:00": time.Date(2026, 1, 31, 11, 0, 0, 0, time.UTC),
	} {
		got, err := parseMoment("since", s, now)
		require.NoError(t, err, s)
		require.Truef(t, want.Equal(got), "%s: %s", s, got)
	}
	for _, s := range []string{"-2h", "7", "xd", "-7d", "7 d", "2026-13-01"} {
		_, err := parseMoment("since", s, now)
		require.ErrorContains(t, err, "invalid time", s)
	}
	for _, s := range []string{"65536d", "99999999999999999999d", "9999999h"} {
		_, err := parseMoment("since", s, now)
		require.ErrorContains(t, err, "is too long ago", s)
	}
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// shownAt is a cli that writes into a buffer, at noon.
func shownAt() (*cli.Env, *bytes.Buffer) {
	var b bytes.Buffer
	c := cli.New(strings.NewReader(""), &b, &b)
	c.Now = func() time.Time { return noon }
	return c, &b
}
