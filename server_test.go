package batchyard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/task"
)

// sent fails when the server sent fields that a type lacks.
func sent[T interface{ RawJSON() json.RawMessage }](t *testing.T, v T) {
	t.Helper()
	require.NotEmpty(t, v.RawJSON())
	d := json.NewDecoder(bytes.NewReader(v.RawJSON()))
	d.DisallowUnknownFields()
	into := reflect.New(reflect.TypeOf(v))
	require.NoError(t, d.Decode(into.Interface()), "%s", v.RawJSON())
	again, err := json.Marshal(into.Interface())
	require.NoError(t, err)
	require.JSONEq(t, string(v.RawJSON()), string(again), "nothing is lost")
}

// What a running server sends is what the client's types say.
func TestRunningServer(t *testing.T) {
	t.Parallel()
	url, err := server()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tenant := fmt.Sprintf("live-%d", time.Now().UnixNano())
	c, err := batchyard.New(url, batchyard.WithTenant(tenant))
	require.NoError(t, err)
	done := &task.Task{ID: "a/b c?", JobID: "j 1", Model: "m", CustomID: "c", Labels: map[string]string{"k": "v"}, Callback: &task.Callback{URL: "http://127.0.0.1:9/hook"},
		Deadline: time.Now().Add(time.Hour), Input: say("Hello.")}
	waits := &task.Task{JobID: "j 1", Model: "m", Input: say("Hello?"), Priority: task.Low, Needs: []string{"no-such-tag"}}
	require.NoError(t, c.Submit(ctx, done, waits))

	s, err := c.Wait(ctx, done.ID)
	require.NoError(t, err)
	require.Equal(t, task.Success, s.State)
	require.Equal(t, []any{done.ID, tenant, "j 1", "c", task.Normal, "v"}, []any{s.TaskID, s.Tenant, s.JobID, s.CustomID, s.Priority, s.Labels["k"]})
	require.NotEmpty(t, s.DeviceID)
	require.NotEmpty(t, s.Attempts)
	require.Positive(t, s.Usage.InputTokens)
	require.NotNil(t, s.FinishedAt)
	sent(t, *s)

	level := 3
	r, err := c.SetPriority(ctx, waits.ID, batchyard.PriorityChange{Level: &level})
	require.NoError(t, err)
	require.Equal(t, batchyard.Rank{Priority: task.Low, Level: 3}, r.To)
	require.Equal(t, waits.ID, r.TaskID)
	sent(t, *r)
	_, err = c.SetPriority(ctx, done.ID, batchyard.PriorityChange{Level: &level})
	var late *batchyard.Error
	require.ErrorAs(t, err, &late)
	require.ErrorIs(t, err, batchyard.ErrConflict)
	require.Equal(t, task.Success, late.State)
	require.Len(t, late.TraceID, 32)

	w, err := c.Why(ctx, waits.ID)
	require.NoError(t, err)
	require.Positive(t, w.Waiting.Out["tags"])
	require.NotEmpty(t, w.Sentence)
	sent(t, *w)
	w, err = c.Why(ctx, done.ID)
	require.NoError(t, err)
	sent(t, *w)

	events, err := c.Events(ctx, done.ID)
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(events, func(e batchyard.Event) bool { return e.Action == task.TaskAccepted && e.ActorType == task.ActorUser }))
	for _, e := range events {
		sent(t, e)
	}

	j, err := c.WaitJob(ctx, "j 1", 1)
	require.NoError(t, err)
	require.Equal(t, []any{"j 1", tenant, int64(1)}, []any{j.JobID, j.Tenant, j.Done})
	sent(t, *j)
	_, err = c.Job(ctx, "none")
	require.ErrorIs(t, err, batchyard.ErrNotFound)

	var results []*task.Result
	for r, err := range c.Results(ctx, "j 1") {
		require.NoError(t, err)
		results = append(results, r)
	}
	require.Len(t, results, 1)
	require.Equal(t, done.ID, results[0].TaskID)
	require.Equal(t, string(s.Output), string(results[0].Output))
	for range c.Results(ctx, "none") {
		require.Fail(t, "an unknown job has no results")
	}

	p, err := c.Page(ctx, batchyard.Filter{JobID: "j 1", Limit: 1})
	require.NoError(t, err)
	require.Len(t, p.Tasks, 1)
	require.NotEmpty(t, p.Next)
	sent(t, p.Tasks[0])
	_, err = c.Page(ctx, batchyard.Filter{Cursor: "nonsense"})
	require.ErrorIs(t, err, batchyard.ErrInvalid)

	state, err := c.Cancel(ctx, waits.ID)
	require.NoError(t, err)
	require.Equal(t, task.Pending, state)

	l, err := c.Devices(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, l.Devices)
	for _, d := range l.Devices {
		require.NotEmpty(t, d.DeviceID)
		sent(t, d)
	}
	_, err = c.Undrain(ctx, "no-such-device")
	require.ErrorIs(t, err, batchyard.ErrNotFound)
	d, err := c.Undrain(ctx, l.Devices[0].DeviceID)
	require.NoError(t, err)
	require.Equal(t, []any{l.Devices[0].DeviceID, false, false}, []any{d.DeviceID, d.Drained, d.Changed})
	sent(t, *d)

	policy, err := c.Policy(ctx)
	require.NoError(t, err)
	require.Equal(t, "file", policy.Source)
	sent(t, *policy)
	_, err = c.SetPolicy(ctx, batchyard.PolicySetting{Policy: "best"})
	require.ErrorIs(t, err, batchyard.ErrInvalid)
	policy, err = c.SetPolicy(ctx, policy.PolicySetting)
	require.NoError(t, err)
	require.Equal(t, []string{"operator", tenant}, []string{policy.Source, policy.By})
	sent(t, *policy)
	policy, err = c.ResetPolicy(ctx)
	require.NoError(t, err)
	require.Equal(t, "file", policy.Source)
}

// Importing the client brings in no server, no broker and no database with it.
func TestImports(t *testing.T) {
	t.Parallel()
	const module = "github.com/batchyard/batchyard"
	for dir, allowed := range map[string][]string{
		"internal/strictjson": nil,
		".":                   {module + "/task", "github.com/cenkalti/backoff/v4"},
		"task":                {module + "/internal/strictjson", "github.com/google/uuid", "github.com/vmihailenco/msgpack/v5", "github.com/vmihailenco/msgpack/v5/msgpcode"},
	} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			src, err := os.ReadFile(file)
			require.NoError(t, err)
			f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ImportsOnly)
			require.NoError(t, err)
			for _, i := range f.Imports {
				path, err := strconv.Unquote(i.Path.Value)
				require.NoError(t, err)
				first, _, _ := strings.Cut(path, "/")
				require.True(t, !strings.Contains(first, ".") || slices.Contains(allowed, path), "%s imports %s", file, path)
			}
		}
	}
}
