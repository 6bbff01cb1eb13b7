package auditcmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/prove"
	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// proving is a job whose output is checked.
type proving struct {
	t           *testing.T
	pool        *pgxpool.Pool
	g           *rig.Signing
	r           *rig.Rig
	e0, results *rig.Partition
	proof       []byte
	rows        []*audit.ProvenColumns // that it proves
}

func newProving(t *testing.T, tasks int) *proving {
	p := &proving{t: t, pool: audittest.NewPool(t)}
	p.g, p.r = rig.NewSigning(t, p.pool), rig.New(t, p.pool)
	p.e0, p.results = p.r.Own("events", 0), p.r.Own("results", 0)
	submitted := task.Event{Time: time.Now().Add(-time.Hour), Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser, ActorID: "alice", ResourceType: "job", ResourceID: "job-1", JobID: "job-1"}
	submitted.Detail = fmt.Appendf(nil, `{"sha256":"%s","tasks":%d,"lines":%d,"bad_lines":0,"bytes":99,"file":"n.jsonl","format":"openai"}`, strings.Repeat("a1", 32), tasks, tasks)
	p.r.Record(p.e0.Events(t, submitted))
	return p
}

// story begins the story of a task of the job.
func story(id string) *audittest.Story {
	s := audittest.NewStory(id)
	s.Task.JobID, s.Task.TraceID = "job-1", "trace-"+id
	return s
}

// succeeded returns what is written about a task that succeeds.
func succeeded(s *audittest.Story) ([]task.Event, *task.Result) {
	trace := s.Task.TraceID
	es, end := s.Life()
	for j := range es {
		es[j].JobID, es[j].TraceID = "job-1", trace
	}
	end.JobID, end.TraceID, end.CustomID = "job-1", trace, s.Task.CustomID
	return es, end
}

// seal signs a checkpoint and makes a proof that leads to it.
func (p *proving) seal() {
	p.g.Seal()
	p.prove("job-1")
}

func (p *proving) prove(job string) {
	lines := p.g.Lines()
	c, err := audit.ParseCheckpoint(lines[len(lines)-1])
	require.NoError(p.t, err)
	var out bytes.Buffer
	_, _, err = prove.Write(p.t.Context(), p.pool, prove.Request{ProofSubject: audit.ProofSubject{Tenant: "acme", Job: job}, Candidates: []prove.Candidate{{SignedCheckpoint: c, Signed: c.Note}}}, &out)
	require.NoError(p.t, err)
	p.proof, p.rows = out.Bytes(), nil
	require.NoError(p.t, p.check(p.proof, func(r *audit.ProvenColumns) { p.rows = append(p.rows, r) }))
}

func (p *proving) check(proof []byte, fn func(*audit.ProvenColumns)) error {
	_, err := audit.CheckProof(bytes.NewReader(proof), audit.Trust{Keys: p.g.Keys()}, func(r *audit.ProvenColumns) error {
		fn(r)
		return nil
	})
	return err
}

func (p *proving) compare(lines ...string) *audit.OutputCheck {
	p.t.Helper()
	o := audit.NewOutputCheck(jobs.OpenAILine)
	for _, r := range p.rows {
		require.NoError(p.t, o.Take(r))
	}
	require.NoError(p.t, o.Compare(strings.NewReader(strings.Join(lines, "\n")+"\n")))
	return o
}

// line returns a line as the output of a job has it.
func line(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(text.JSONLines(&b))
	e.SetEscapeHTML(false)
	require.NoError(t, e.Encode(v))
	return strings.TrimSpace(b.String())
}

func counts(o *audit.OutputCheck) []int {
	return []int{o.Proven, o.Others, o.Answers, o.Outcomes, o.Unproven.Count, o.Problems.Count}
}

// Every member of every line of the output of a job is compared with its proof.
func TestTheOutputOfAJobIsProven(t *testing.T) {
	t.Parallel()
	p := newProving(t, 5)
	var ends []*task.Result
	for i := range 2 {
		es, end := succeeded(story(fmt.Sprintf("t%d", i)))
		p.r.Record(p.e0.Events(t, es...), p.results.Result(t, end))
		ends = append(ends, end)
	}
	// An answer that JSON readers may read differently is proven as it is.
	s := story("t2")
	es, end := succeeded(s)
	end.Output = task.Input(`{ "a": 1, "a": "\u2028` + "\u2028" + `<b>" }`)
	p.r.Record(p.e0.Events(t, es...), p.results.Result(t, end))
	ends = append(ends, end)
	s = story("t3")
	p.r.Record(p.e0.Events(t, s.Accepted(), s.Event(task.TaskFailed, 1, "d")))
	failed := s.Result(task.Failed, "d")
	failed.Status, failed.Output = 500, task.Input(`{"error":{"message":"no"}}`)
	p.r.Record(p.results.Result(t, failed)) // with a row of its own for the digest
	s = story("t4")
	e := s.Event(task.TaskFailed, 1, "d")
	e.ErrorClass = task.ClassDevice
	broken := s.Result(task.Failed, "d")
	p.r.Record(p.e0.Events(t, s.Accepted(), e), p.results.Result(t, broken))
	ends = append(ends, failed, broken)
	p.seal()

	for _, format := range []func(*task.Result) any{jobs.OpenAILine, func(r *task.Result) any { return r }} {
		lines := make([]string, len(ends))
		for i, r := range ends {
			lines[i] = line(t, format(r))
		}
		o := p.compare(lines...)
		require.Equal(t, []int{3, 2, 0, 0, 0, 0}, counts(o), "%v", o.Problems.First)
		require.Equal(t, []any{int64(5), 5}, []any{o.Expected, o.Ended})
		require.Equal(t, 1, p.compare(lines[1:]...).Problems.Count, "a line is missing")
		require.Equal(t, 1, p.compare(append(slices.Clone(lines), lines[2])...).Problems.Count, "a line is there twice")
		// Whatever value of whatever line is changed.
		for i, l := range lines {
			for at := range len(l) - 1 {
				if l[at] >= '0' && l[at] <= '8' || l[at] >= 'a' && l[at] < 'z' {
					changed := append([]string{}, lines...)
					changed[i] = l[:at] + string(l[at]+1) + l[at+1:]
					require.Positive(t, p.compare(changed...).Problems.Count, changed[i])
				}
			}
		}
	}

	lines := make([]string, len(ends))
	for i, r := range ends {
		lines[i] = line(t, jobs.OpenAILine(r))
	}
	replaced := func(i int, old, by string) []string {
		require.Contains(t, lines[i], old)
		changed := append([]string{}, lines...)
		changed[i] = strings.Replace(lines[i], old, by, 1)
		return changed
	}
	for says, changed := range map[string][]string{
		`"response" twice`:                    replaced(0, `"response":`, `"response":{"status_code":200,"request_id":"x","body":"forged"},"response":`),
		`"response.body" twice`:               replaced(0, `"body":`, `"body":"forged","body":`),
		`a member "Response"`:                 replaced(0, `"response":`, `"Response":{"body":"forged"},"response":`),
		`a member "response.Body"`:            replaced(0, `"body":`, `"Body":"forged","body":`),
		`a member "extra"`:                    replaced(0, `"response":`, `"extra":1,"response":`),
		`no member "custom_id"`:               replaced(0, `"custom_id":"line-t0",`, ``),
		`no member "response.request_id"`:     replaced(0, `"request_id":"trace-t0",`, ``),
		"[custom_id] differ":                  replaced(0, `"line-t0"`, `"line-t1"`),
		"[response.request_id] differ":        replaced(0, `"trace-t0"`, `"trace-t1"`),
		"[response.body] differ":              replaced(3, `"no"`, `"yes"`),
		"[response.status_code] differ":       replaced(3, `500`, `200`),
		"[error.message] differ":              replaced(4, `it broke`, `it did not`),
		"[response response.status_code":      replaced(4, `"response":null`, `"response":{"status_code":500,"request_id":"x","body":{"forged":1}}`),
		"not JSON":                            replaced(0, `{`, ``),
		"not a JSON object":                   append([]string{`[]`}, lines...),
		"that has not ended, as far as the p": append([]string{`{"task_id":"t9","state":"SUCCESS","output":1}`}, lines...),
	} {
		o := p.compare(changed...)
		require.Positive(t, o.Problems.Count, says)
		require.Contains(t, strings.Join(o.Problems.First, "\n"), says)
	}
}

// Of two ends of a task that was cancelled while it ran, the one that was recorded first counts.
func TestTheEndThatCountsIsProven(t *testing.T) {
	t.Parallel()
	p := newProving(t, 1)
	s := story("t0")
	es, end := succeeded(s)
	cancelled := task.NewResult(s.Task, task.Cancelled, s.Tick())
	cancelled.JobID, cancelled.TraceID = "job-1", end.TraceID
	p.r.Record(p.results.Result(t, cancelled))
	p.r.Record(p.e0.Events(t, es...), p.results.Result(t, end))
	require.Equal(t, 1, audittest.One[int](t, p.pool, "SELECT count(*) FROM audit_log WHERE action = 'result.duplicate'"))
	p.seal()
	require.Equal(t, []int{0, 1, 0, 0, 0, 0}, counts(p.compare(line(t, jobs.OpenAILine(cancelled)))))
	o := p.compare(line(t, jobs.OpenAILine(end)))
	require.Equal(t, []int{0, 0, 0, 0, 0, 1}, counts(o))
	require.Contains(t, o.Problems.First[0], "(CANCELLED) whose digest is in the log")

	audittest.Execute(t, p.pool, "DELETE FROM results") // without the result, the log does not say which end it is
	p.seal()
	require.Equal(t, []int{0, 0, 0, 0, 1, 0}, counts(p.compare(line(t, jobs.OpenAILine(cancelled)))))
	require.Equal(t, []int{0, 0, 0, 0, 1, 0}, counts(p.compare(line(t, jobs.OpenAILine(end)))))
}

// After a retry, the older answer is not the answer any more.
func TestAnOlderAnswerIsNotProven(t *testing.T) {
	t.Parallel()
	p := newProving(t, 1)
	s := story("t0")
	es, old := succeeded(s)
	p.r.Record(p.e0.Events(t, es...), p.results.Result(t, old))
	p.seal()
	require.Equal(t, []int{1, 0, 0, 0, 0, 0}, counts(p.compare(line(t, jobs.OpenAILine(old)))))

	s.Task.Progress = &task.Progress{Generation: 1}
	s.Task.JobID, s.Task.TraceID = "job-1", old.TraceID
	retried := s.Event(task.TaskRetried, 0, "")
	p.r.Record(p.e0.Events(t, retried))
	p.seal()
	o := p.compare(line(t, jobs.OpenAILine(old)))
	require.Equal(t, []int{0, 0, 0, 0, 1, 0}, counts(o), "it runs again: %v", o.Problems.First)

	es, end := succeeded(s)
	end.Output = task.Input(`{"answer":"another"}`)
	p.r.Record(p.e0.Events(t, es[1:]...), p.results.Result(t, end))
	p.seal()
	require.Equal(t, []int{1, 0, 0, 0, 0, 0}, counts(p.compare(line(t, jobs.OpenAILine(end)))))
	o = p.compare(line(t, jobs.OpenAILine(old)))
	require.Equal(t, []int{0, 0, 0, 0, 0, 1}, counts(o))
	require.Contains(t, o.Problems.First[0], "is of generation 0 of task t0")
}

// A digest may be in a row about another job, and then the proof has that row; of another tenant's it has none.
func TestDigestsBesideOtherTenants(t *testing.T) {
	t.Parallel()
	p := newProving(t, 4)
	record := func(tenant string, es []task.Event, end *task.Result) {
		other := audittest.NewStory("other-of-" + tenant)
		other.Task.Tenant, other.Task.JobID = tenant, "job-2"
		p.r.Record(p.e0.Events(t, append(es, other.Event(task.TaskSucceeded, 1, "d"))...), p.results.Result(t, end), p.results.Result(t, other.Result(task.Success, "d")))
	}
	es, beside := succeeded(story("t0"))
	record("acme", es, beside)
	es, end := succeeded(story("t1"))
	record("umbrella", es, end)
	s := story("t2")
	e := s.Event(task.TaskFailed, 1, "d")
	e.ErrorClass = task.ClassDevice
	broken := s.Result(task.Failed, "d")
	record("umbrella", []task.Event{s.Accepted(), e}, broken)
	s = story("t3")
	failed := s.Result(task.Failed, "d")
	failed.Status = 500
	record("umbrella", []task.Event{s.Accepted(), s.Event(task.TaskFailed, 1, "d")}, failed)
	p.seal()
	require.NotContains(t, string(p.proof), "umbrella")
	aside := 0
	for _, r := range p.rows {
		require.Equal(t, "acme", r.Text(audit.ColTenant))
		if r.Aside {
			aside++
		}
	}
	require.Equal(t, 1, aside)

	lines := []string{line(t, jobs.OpenAILine(beside)), line(t, jobs.OpenAILine(end)), line(t, jobs.OpenAILine(broken)), line(t, jobs.OpenAILine(failed))}
	o := p.compare(lines...)
	require.Equal(t, []int{1, 0, 1, 1, 1, 0}, counts(o), "%v", o.Problems.First)
	for i, c := range map[int]struct{ old, by, says string }{
		1: {`"created":1772300000`, `"created":1`, "is not one whose digest"},
		2: {`"response":null,"error":{"code":"device"`, `"response":null,"error":{"code":"invalid"`, `failed with "invalid"`},
		3: {`"status_code":500`, `"status_code":200`, "another outcome"},
	} {
		require.Contains(t, lines[i], c.old)
		changed := append([]string{}, lines...)
		changed[i] = strings.Replace(lines[i], c.old, c.by, 1)
		o := p.compare(changed...)
		require.Equal(t, 1, o.Problems.Count, c.by)
		require.Contains(t, o.Problems.First[0], c.says)
	}

	// A result can only be beside the row that has its digest.
	carried := func(proof []byte) (line string, row audit.ProofRow) {
		for _, line = range strings.Split(string(proof), "\n") {
			if strings.Contains(line, `"results":`) {
				break
			}
		}
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		require.Len(t, row.Results, 1)
		return line, row
	}
	proof := p.proof
	was, row := carried(proof)
	own := row.Results[0]
	other := *p
	other.prove("job-2")
	_, beside2 := carried(other.proof)
	for says, results := range map[string][][]byte{
		"not one whose digest the row has":     {bytes.Replace(own, []byte("line-t0"), []byte("line-t9"), 1)},
		"is not one whose digest":              {own, own},
		"which is not what the proof is about": beside2.Results,
	} {
		row.Results = results
		forged := strings.Replace(string(proof), was, line(t, row), 1)
		require.NotEqual(t, string(proof), forged)
		require.ErrorContains(t, p.check([]byte(forged), func(*audit.ProvenColumns) {}), says)
	}
}
