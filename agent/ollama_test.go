package agent

import (
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Engines are asked in the way that they answer, and not again and again in one that they do not.
func TestEachEngineIsAskedInItsWay(t *testing.T) {
	loaded, err := os.ReadFile("testdata/ollama_ps.json")
	require.NoError(t, err)
	var mu sync.Mutex
	asked, answers := map[string]int{}, map[string]string{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked[r.URL.Path]++
		if a, ok := answers[r.URL.Path]; ok {
			_, _ = w.Write([]byte(a))
			return
		}
		http.NotFound(w, r)
	}))
	defer s.Close()
	for name, c := range map[string]struct {
		engine  string
		answers map[string]string
		want    figures
		asked   map[string]int
	}{
		"Ollama":             {"auto", map[string]string{"/api/ps": string(loaded)}, figures{loaded: []string{"llama3.2:latest"}, context: map[string]int{"llama3.2:latest": 4096}}, map[string]int{"/metrics": 1, "/api/ps": 2}},
		"Ollama, idle":       {"", map[string]string{"/api/ps": `{"models":[]}`}, figures{running: ptr(0)}, map[string]int{"/metrics": 1, "/api/ps": 2}},
		"Ollama, as is said": {"ollama", map[string]string{"/api/ps": string(loaded)}, figures{loaded: []string{"llama3.2:latest"}, context: map[string]int{"llama3.2:latest": 4096}}, map[string]int{"/api/ps": 2}},
		"not Ollama":         {"auto", map[string]string{"/api/ps": `{"processes":3}`}, figures{}, map[string]int{"/metrics": 1, "/api/ps": 1}},
		"no JSON":            {"auto", map[string]string{"/api/ps": `<html>`}, figures{}, map[string]int{"/metrics": 1, "/api/ps": 1}},
		"metrics":            {"auto", map[string]string{"/metrics": "te_queue_size 3\n", "/api/ps": string(loaded)}, figures{waiting: ptr(3)}, map[string]int{"/metrics": 2}},
		"TEI, as is said":    {"tei", map[string]string{"/api/ps": string(loaded)}, figures{}, map[string]int{"/metrics": 1}},
		"a service":          {"openai", map[string]string{"/metrics": "te_queue_size 3\n"}, figures{}, map[string]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			asked, answers = map[string]int{}, c.answers
			mu.Unlock()
			d := device{cfg: Config{URL: s.URL, Engine: c.engine, Timeout: time.Minute}, client: s.Client()}
			for range 2 {
				require.Equal(t, c.want, d.load(t.Context()))
			}
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, c.asked, asked)
		})
	}
}
