package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// BenchmarkSaturation submits a file of 50,000 tasks to devices that answer at once, and reports how many are
// recorded per second. To compare two programs, name them in turns:
//
//	BATCHYARD_BIN=/tmp/old BATCHYARD_TEST_SERVICES=real go test ./test -run '^$' -bench Saturation -benchtime 1x -timeout 30m
func BenchmarkSaturation(b *testing.B) {
	const lines = 50_000
	s := harness.Get(b, harness.Disruptable)
	in := harness.Install(b, s, map[string]any{"kafka.partitions": 12})
	in.Fleet(b, fleet.Spec{ID: "a", Slots: 128}, fleet.Spec{ID: "b", Slots: 128})
	p := in.Process(b, "serve")
	round := 0
	for b.Loop() {
		round++
		file, _ := writeLines(b, lines, func(i int) string {
			return fmt.Sprintf(`{"custom_id":"line-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"question %d of round %d"}]}}`, i, i, round)
		})
		begin := time.Now()
		submit := harness.Run(b, in.Dir, nil, "", "submit", file, "--server", p.URL(), "--job", fmt.Sprint("round-", round))
		require.Zerof(b, submit.Code, "%s", submit.Stderr)
		harness.Eventually(b, 10*time.Minute, "every task is recorded", func() bool {
			return harness.SQL[int](b, in, "SELECT count(*) FROM results") == round*lines
		})
		b.ReportMetric(lines/time.Since(begin).Seconds(), "tasks/s")
	}
}
