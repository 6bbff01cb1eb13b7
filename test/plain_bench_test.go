package test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/harness"
)

// BenchmarkPlainRequest measures what `batchyard dev` adds to a plain request at light load: one client asks in turns the
// device, which takes 20 ms, and the API. It reports percentiles of both, and of the differences within each pair.
//
//	go test ./test -run '^$' -bench PlainRequest -benchtime 1000x
func BenchmarkPlainRequest(b *testing.B) {
	f, err := fleet.Start(b.Context(), []fleet.Spec{{ID: "a", Slots: 4, ServiceTime: 20 * time.Millisecond, Models: []string{"m"}}})
	require.NoError(b, err)
	b.Cleanup(f.Close)
	device := f.Devices()[0].URL()
	p := harness.Local(b, nil).Dev(b, "--listen", "127.0.0.1:0", "--slots", "4", "--device", "a="+device)
	for _, c := range []struct{ name, path, body string }{
		{"chat", "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"Say hello."}],"max_tokens":16}`},
		{"embeddings", "/v1/embeddings", `{"model":"m","input":"hello"}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			ask := func(base string) time.Duration {
				began := time.Now()
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, base+c.path, strings.NewReader(c.body))
				require.NoError(b, err)
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				require.NoError(b, err)
				text, err := io.ReadAll(resp.Body)
				require.NoError(b, err)
				require.NoError(b, resp.Body.Close())
				require.Equalf(b, http.StatusOK, resp.StatusCode, "%s", text)
				return time.Since(began)
			}
			for range 20 { // connections, measured service times
				ask(device)
				ask(p.URL())
			}
			var direct, through, added []time.Duration
			for b.Loop() {
				d, t := ask(device), ask(p.URL())
				direct, through, added = append(direct, d), append(through, t), append(added, t-d)
			}
			for name, all := range map[string][]time.Duration{"direct": direct, "through": through, "added": added} {
				slices.Sort(all)
				for _, percent := range []int{50, 99} {
					b.ReportMetric(float64(all[(len(all)-1)*percent/100])/1e6, map[int]string{50: "p50-", 99: "p99-"}[percent]+name+"-ms")
				}
			}
		})
	}
}
