package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"encoding/json"
	"io"
	neturl "net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/ledger"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// answered submits tasks of a tenant of its own and waits for their results and
// for what the audit log tells of them.
func answered(t *testing.T, f *fixture, n int) (tenant string) {
	t.Helper()
	tenant = unique("audited")
	ok(t, "submit", openAIFile(t, n), "--server", f.URL, "--tenant", tenant, "--wait", "-o", filepath.Join(t.TempDir(), "out.jsonl"))
	require.Eventually(t, func() bool { // the result may be recorded before the event that reports it
		return len(lines(try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--action", "task.succeeded", "--json").out)) == n
	}, time.Minute, 50*time.Millisecond)
	return tenant
}

func TestAuditQuery(t *testing.T) {
	t.Parallel()
	f := running(t)
	tenant := answered(t, f, 3)
	text := ok(t, "audit", "query", "-c", f.config, "--tenant", tenant, "--action", "task.accepted", "--order", "asc")
	require.Len(t, lines(text), 4)
	require.Regexp(t, `^TIME +ACTION +OUTCOME`, text)
	require.Regexp(t, `(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z +task\.accepted +ok`, text)

	r := try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--limit", "2", "--since", "1h")
	require.Len(t, lines(r.out), 3)
	require.Contains(t, r.err, "there are more")
	require.Contains(t, try(t, "", "audit", "query", "-c", f.config, "--tenant", "no-such-tenant").err, "no row matches")
	require.Contains(t, try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--until", "1h").err, "no row matches")

	var table [][]string
	var jsons []string
	require.Eventually(t, func() bool { // that the answers were read may be recorded meanwhile
		var err error
		table, err = csv.NewReader(strings.NewReader(try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--all", "--csv").out)).ReadAll()
		jsons = lines(try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--all", "--json").out)
		return err == nil && len(table) == 1+len(jsons)
	}, time.Minute, 50*time.Millisecond)
	require.Len(t, table[0], len(query.Columns))
	require.Equal(t, "time", table[0][0])
	var row query.Row
	require.NoError(t, json.Unmarshal([]byte(jsons[0]), &row))
	require.Equal(t, tenant, row.Tenant)
	require.JSONEq(t, `{"action":"task.accepted","tenant":"`+tenant+`"}`,
		lines(ok(t, "audit", "query", "-c", f.config, "--tenant", tenant, "--action", "task.accepted", "--json", "--columns", "action,tenant"))[0])

	for want, args := range map[string][]string{
		`unknown action "nope"`:  {"--action", "nope"},
		`unknown column "nope"`:  {"--columns", "nope"},
		`invalid time`:           {"--since", "yesterday"},
		`is not before`:          {"--since", "1h", "--until", "2h"},
		`use asc or desc`:        {"--order", "up"},
		`cannot be combined`:     {"--json", "--csv"},
		`use ok, failed`:         {"--outcome", "good"},
		`not a Postgres URL`:     {"--postgres", "http://x y"},
		`connecting to Postgres`: {"--postgres", "postgres://127.0.0.1:1/x"},
	} {
		r := try(t, "", append([]string{"audit", "query", "-c", f.config}, args...)...)
		require.Containsf(t, r.err, want, "%v", args)
		require.Containsf(t, []int{cli.ExitUsage, cli.ExitUnreachable}, r.code, "%v", args)
	}
}

func TestAuditTail(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("tailed")
	past := try(t, "", "audit", "tail", "-c", f.config, "--until", "1h")
	require.Equal(t, cli.ExitUsage, past.code)
	require.Contains(t, past.err, "use `batchyard audit query`")
	var out, errs syncBuffer
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		c := newCLI(strings.NewReader(""), &out, &errs)
		ended <- run(ctx, c, []string{"audit", "tail", "-c", f.config, "--tenant", tenant, "-n", "0", "--columns", "action,task_id,src_topic,src_partition,src_offset,src_index"})
	}()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "ACTION") }, time.Minute, 10*time.Millisecond)
	ok(t, "submit", openAIFile(t, 20), "--server", f.URL, "--tenant", tenant, "--wait", "-o", filepath.Join(t.TempDir(), "out.jsonl"))
	recorded := 0
	require.Eventually(t, func() bool {
		r := try(t, "", "audit", "query", "-c", f.config, "--tenant", tenant, "--all", "--json")
		recorded = len(lines(r.out))
		return r.code == cli.ExitOK && strings.Count(out.String(), "task.succeeded") >= 20 && // a record that was written twice is two events
			len(lines(out.String()))-1 >= recorded
	}, time.Minute, 50*time.Millisecond, "%d rows, and %d of them succeeded: %s%s", len(lines(out.String())), strings.Count(out.String(), "task.succeeded"), &out, &errs)
	stop()
	require.Equal(t, cli.ExitOK, <-ended, errs.String())
	seen := map[string]bool{}
	for _, line := range lines(out.String())[1:] {
		place := strings.Join(strings.Fields(line)[2:], " ")
		require.Falsef(t, seen[place], "twice: %s", line)
		seen[place] = true
	}
	require.GreaterOrEqual(t, len(seen), recorded, "what was recorded before it was stopped")
}

func TestAuditExport(t *testing.T) {
	t.Parallel()
	f := running(t)
	tenant := answered(t, f, 3)
	require.Eventually(t, func() bool { // the last row about the job
		return strings.Contains(ok(t, "audit", "export", "-c", f.config, "--tenant", tenant), `"action":"job.finished"`)
	}, testenv.Patience, 50*time.Millisecond)
	dir := t.TempDir()
	file := filepath.Join(dir, "all.jsonl.gz")
	r := try(t, "", "audit", "export", "-c", f.config, "--tenant", tenant, "-o", file)
	require.Equal(t, cli.ExitOK, r.code, r.err)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	zip, err := gzip.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	text, err := io.ReadAll(zip)
	require.NoError(t, err)
	rows := lines(string(text))
	require.Contains(t, r.err, strconv.Itoa(len(rows))+" rows written")
	require.Equal(t, rows, lines(ok(t, "audit", "export", "-c", f.config, "--tenant", tenant)))
	last := ""
	for _, line := range rows {
		require.NotContains(t, line, "row_hash")
		var row query.Row
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		require.GreaterOrEqual(t, row.Time.Format(time.RFC3339Nano), last)
	}
	for _, line := range lines(ok(t, "audit", "export", "-c", f.config, "--tenant", tenant, "--hashes")) {
		var row query.Row
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		require.Len(t, row.RowHash, 32)
		require.Positive(t, row.ChainSeq)
	}
	for _, line := range lines(ok(t, "audit", "export", "-c", f.config, "--tenant", tenant, "--ocsf")) {
		var e query.OCSF
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		require.Equal(t, 6003, e.ClassUID)
	}
	// What fails leaves nothing behind.
	r = try(t, "", "audit", "export", "-c", f.config, "--action", "nope", "-o", filepath.Join(dir, "other.jsonl"))
	require.Equal(t, cli.ExitUsage, r.code)
	nowhere := filepath.Join(dir, "no", "where.jsonl")
	r = try(t, "", "audit", "export", "-c", f.config, "-o", nowhere)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Equal(t, "batchyard: making "+nowhere+": no such file or directory\n", r.err)
	// What is no file is written to, and stays what it is.
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	read := make(chan int, 1)
	go func() {
		b, _ := os.ReadFile(pipe)
		read <- len(lines(string(b)))
	}()
	ok(t, "audit", "export", "-c", f.config, "--tenant", tenant, "-o", pipe)
	require.Equal(t, len(rows), <-read)
	is, err := os.Lstat(pipe)
	require.NoError(t, err)
	require.NotZero(t, is.Mode()&os.ModeNamedPipe, "it is a pipe still")

	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

// A healthy log has no findings, and these are a list still: jq iterates over it.
func TestAuditVerifyIsForPrograms(t *testing.T) {
	t.Parallel()
	f := running(t)
	r := try(t, "", "audit", "verify", "-c", f.config, "--json", "--no-kafka", "--allow-unproven", "all")
	require.Equal(t, cli.ExitOK, r.code, r.err)
	var report map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(r.out), &report))
	require.Equal(t, "[]", string(report["findings"]))
	for _, name := range []string{"chains", "notes", "unproven", "proven"} {
		require.Truef(t, strings.HasPrefix(string(report[name]), "["), "%s: %s", name, r.out)
	}
}

// What is not proven is not well, and scripts can say what they accept.
func TestAuditVerifySaysWhatIsNotProven(t *testing.T) {
	t.Parallel()
	f := running(t)
	r := try(t, "", "audit", "verify", "-c", f.config, "--no-kafka")
	require.Equal(t, cli.ExitUnproven, r.code, r.err)
	require.Contains(t, r.err, "not everything is proven")
	require.Contains(t, r.out, "against someone with database, checkpoint directory and Kafka: NOT proven")
	r = try(t, "", "audit", "verify", "-c", f.config, "--allow-unproven", "tail,nonsense")
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, `unknown kind "nonsense"`)

	r = try(t, "", "audit", "accept-restore", "-c", f.config)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, "--reason")
	r = try(t, "", "audit", "accept-restore", "-c", f.config, "--reason", "nothing happened")
	require.NotEqual(t, cli.ExitOK, r.code, "there is nothing to accept, or no key")
}

func TestAuditStats(t *testing.T) {
	t.Parallel()
	f := running(t)
	answered(t, f, 3)
	text := ok(t, "audit", "stats", "-c", f.config)
	require.Regexp(t, `(?m)^rows +about \d+`, text)
	require.Regexp(t, `(?m)^audit_log_\d{8} +\d{4}-\d\d-\d\d +\d+ +\S+ \S+iB`, text)
	require.Regexp(t, `(?m)^\d{4}-\d\d-\d\d +task\.accepted +ok +\d+`, text)
	require.Regexp(t, `(?m)^events/0 +\d+ +\d+ +\d+ +\d+ +\S+ ago +audit@`, text)
	var s query.Stats
	require.NoError(t, json.Unmarshal([]byte(ok(t, "audit", "stats", "-c", f.config, "--json")), &s))
	require.Zero(t, s.InDefault)
	require.NotNil(t, s.Chains[0].Lag)

	alone := write(t, "config.yaml", "kafka:\n  brokers: [\"127.0.0.1:1\"]\n  dial_timeout: 1s\npostgres:\n  url: \""+f.Stack.PostgresURL+"\"\n")
	r := try(t, "", "audit", "stats", "-c", alone)
	require.Equal(t, cli.ExitOK, r.code)
	require.Contains(t, r.err, "the lag is unknown")
}

func TestLedgerCheck(t *testing.T) {
	t.Parallel()
	f := running(t)
	answered(t, f, 5)
	// Other tests submit, cancel and break things all the while: the account holds.
	text := ok(t, "ledger", "check", "-c", f.config, "--quiet")
	require.Regexp(t, `(?m)^accepted +\d+`, text)
	require.Regexp(t, `(?m)^\+ missing +0`, text)
	require.Contains(t, text, " holds (looked ")
	var r ledger.Report
	require.NoError(t, json.Unmarshal([]byte(ok(t, "ledger", "check", "-c", f.config, "--json")), &r))
	require.True(t, r.Holds)
	require.NotNil(t, r.Problems, "a list, also when it is empty")
	require.Equal(t, r.Accepted, r.Terminal+r.InFlight+r.Dead)
	require.GreaterOrEqual(t, r.ByState[string(task.Success)], int64(5))

	bad := try(t, "", "ledger", "check", "-c", f.config, "--postgres", "postgres://127.0.0.1:1/x")
	require.Equal(t, cli.ExitUnreachable, bad.code)
	bad = try(t, "", "ledger", "check", "-c", f.config, "--wait", "-1s")
	require.Equal(t, cli.ExitUsage, bad.code)

	// A login that may not read learns which role it needs.
	url, err := neturl.Parse(f.Stack.PostgresURL)
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), url.String())
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), "DROP ROLE IF EXISTS unprivileged_role; CREATE ROLE unprivileged_role LOGIN PASSWORD 'none'")
	require.NoError(t, err)
	url.User = neturl.UserPassword("unprivileged_role", "none")
	for _, grant := range []string{"", "GRANT SELECT ON batchyard_schema TO unprivileged_role"} {
		_, err = pool.Exec(t.Context(), grant)
		require.NoError(t, err)
		for _, command := range []string{"ledger check", "audit query", "audit tail", "audit stats", "audit verify", "audit export"} {
			bad = try(t, "", append(strings.Fields(command), "-c", f.config, "--postgres", url.String())...)
			require.Equal(t, cli.ExitUsage, bad.code, bad.err)
			require.Contains(t, bad.err, "needs the role batchyard_auditor", command)
		}
	}
}
