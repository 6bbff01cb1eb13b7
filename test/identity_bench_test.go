package test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// BenchmarkFinishedFile submits a file whose 100,000 tasks finished a day ago, with an empty Redis: no
// request reaches a device, and every answer comes out.
//
//	BATCHYARD_TEST_SERVICES=real go test ./test -run '^$' -bench FinishedFile -benchtime 1x -timeout 30m
func BenchmarkFinishedFile(b *testing.B) {
	const lines = 100_000
	s := harness.Get(b, harness.Disruptable)
	in := harness.Install(b, s, map[string]any{"kafka.partitions": 12})
	f := in.Fleet(b, fleet.Spec{ID: "a", Slots: 64, ServiceTime: time.Millisecond}, fleet.Spec{ID: "b", Slots: 64, ServiceTime: time.Millisecond})
	p := in.Process(b, "serve")
	file, ids := writeLines(b, lines, func(i int) string {
		return fmt.Sprintf(`{"custom_id":"line-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"question %d"}]}}`, i, i)
	})
	out := filepath.Join(in.Dir, "out.jsonl")

	begin := time.Now()
	first := harness.Run(b, in.Dir, nil, "", "submit", file, "--server", p.URL(), "--job", "nightly")
	require.Zerof(b, first.Code, "%s", first.Stderr)
	harness.Eventually(b, 10*time.Minute, "the first run ends", func() bool {
		return harness.SQL[int](b, in, "SELECT count(*) FROM results") == lines
	})
	in.AwaitRecorded(b)
	b.ReportMetric(time.Since(begin).Seconds(), "first-s")
	_, err := in.Pool(b).Exec(b.Context(), `UPDATE tasks SET submitted_at = submitted_at - interval '1 day', updated_at = updated_at - interval '1 day', finished_at = finished_at - interval '1 day'`)
	require.NoError(b, err)
	_, err = in.Pool(b).Exec(b.Context(), `UPDATE results SET finished_at = finished_at - interval '1 day'`)
	require.NoError(b, err)
	had := requests(f)

	for b.Loop() {
		s.EmptyRedis(b)
		again := harness.Run(b, in.Dir, nil, "", "submit", file, "--server", p.URL(), "--job", "nightly", "--wait", "-o", out)
		require.Zerof(b, again.Code, "%s", again.Stderr)
		b.ReportMetric(again.Took.Seconds(), "again-s")
	}
	require.Equal(b, had, requests(f), "an answered task ran again")
	answers := readLines(b, out)
	require.Equal(b, ids, customIDs(answers))
	for _, a := range answers {
		require.Equal(b, http.StatusOK, a.Response.StatusCode, a.CustomID)
	}
}
