package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// batch is what the test reads of a batch.
type batch struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Output string `json:"output_file_id"`
	Errors string `json:"error_file_id"`
	Counts struct {
		Total     int `json:"total"`
		Completed int `json:"completed"`
		Failed    int `json:"failed"`
	} `json:"request_counts"`
	Usage struct {
		Total int64 `json:"total_tokens"`
	} `json:"usage"`
}

// upload uploads a file of n lines, and returns its id and the custom ids.
func upload(t *testing.T, url string, n int) (id string, custom []string) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	require.NoError(t, form.WriteField("purpose", "batch"))
	part, err := form.CreateFormFile("file", "in.jsonl")
	require.NoError(t, err)
	for i := range n {
		custom = append(custom, fmt.Sprintf("c-%05d", i))
		_, err = fmt.Fprintf(part, `{"custom_id":"c-%05d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%d"}]}}`+"\n", i, i)
		require.NoError(t, err)
	}
	require.NoError(t, form.Close())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/files", &body)
	require.NoError(t, err)
	req.Header.Set("Content-Type", form.FormDataContentType())
	answer, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = answer.Body.Close() }()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	var f struct {
		ID string `json:"id"`
	}
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&f))
	return f.ID, custom
}

// Wherever the process dies that feeds a batch or writes its output, another one goes on at the right line, and each line
// is in the output once.
func TestBatchKilledAtEveryPoint(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{
		"kafka.partitions": 2, "kafka.dial_timeout": "20s", "postgres.timeout": "20s", "jobs.chunk_tasks": 20, "jobs.concurrency": 2, "callbacks.unsigned": false,
	})
	in.Settings["files.url"] = in.Dir + "/files"
	in.WriteConfig(t, in.ConfigPath, nil)
	in.Program = harness.FaultBinary(t)
	in.Fleet(t, fleet.Spec{ID: "fast", Models: []string{"m"}, Slots: 8, ServiceTime: 2 * time.Millisecond})
	in.Process(t, append([]string{"serve"}, slices.DeleteFunc(slices.Clone(stages), func(s string) bool { return s == "api" })...)...)
	var points []string
	for _, p := range fault.Points {
		if strings.HasPrefix(p.Name, "feed.") {
			points = append(points, p.Name)
		}
	}
	require.Len(t, points, 3)
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			const n = 300
			if !strings.HasSuffix(point, "_end") {
				point += ":3" // in the middle of the file
			}
			armed := in.Begin(t, []string{fault.Env + "=" + point}, "serve", "api")
			armed.AwaitReady(t)
			file, custom := upload(t, armed.URL(), n)
			var b batch
			armed.API().Do(t, http.MethodPost, "/v1/batches", map[string]string{"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "1h"}).Into(t, &b)
			select {
			case <-armed.Done():
			case <-time.After(2 * harness.Patience):
				t.Fatal("the process did not die")
			}
			require.Contains(t, armed.Log(), "killed at feed.")
			fed := harness.SQL[int64](t, in, "SELECT fed_tasks FROM file_jobs WHERE job_id = $1", b.ID)

			api := in.Process(t, "serve", "api")
			harness.Eventually(t, 2*harness.Patience, "the batch has ended", func() bool {
				api.API().Get(t, "/v1/batches/"+b.ID, &b)
				require.Equal(t, n, b.Counts.Total)
				return b.Status == "completed"
			})
			require.Equal(t, n, b.Counts.Completed)
			require.Empty(t, b.Errors)
			answer := api.API().Do(t, http.MethodGet, "/v1/files/"+b.Output+"/content", nil)
			var got []string
			var tokens int64
			for line := range strings.Lines(string(answer.Body)) {
				var l struct {
					CustomID string `json:"custom_id"`
					Response struct {
						Body struct {
							Usage struct {
								Total int64 `json:"total_tokens"`
							} `json:"usage"`
						} `json:"body"`
					} `json:"response"`
				}
				require.NoError(t, json.Unmarshal([]byte(line), &l))
				got = append(got, l.CustomID)
				tokens += l.Response.Body.Usage.Total
			}
			require.Equal(t, custom, got, "each line once")
			require.Equal(t, tokens, b.Usage.Total)
			require.EqualValues(t, n, harness.SQL[int64](t, in, "SELECT fed_tasks FROM file_jobs WHERE job_id = $1", b.ID))
			require.EqualValues(t, 1, harness.SQL[int64](t, in, "SELECT count(*) FROM files WHERE job_id = $1 AND state = 'STORED'", b.ID), "no output of a process that died is visible")
			if strings.HasPrefix(point, "feed.before_submit") || strings.HasPrefix(point, "feed.after_submit") {
				require.EqualValues(t, 80, fed, "it died at the third window")
				again := harness.SQL[int64](t, in, "SELECT count(*) FROM audit_log WHERE job_id = $1 AND action = 'task.accepted'", b.ID)
				require.LessOrEqual(t, again, int64(n+40), "at most one window was submitted again")
			}
			require.Zero(t, api.Term(t))
		})
	}
}
