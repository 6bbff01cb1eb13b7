package agent

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
)

func ptr(n int) *int { return &n }

func TestEngines(t *testing.T) {
	for file, want := range map[string]figures{
		"vllm.txt":            {running: ptr(12), waiting: ptr(3)},
		"llamacpp.txt":        {running: ptr(2), waiting: ptr(5)},
		"sglang.txt":          {running: ptr(6), waiting: ptr(1)},
		"tgi.txt":             {running: ptr(32), waiting: ptr(7)},
		"tei.txt":             {waiting: ptr(9)},
		"sglang_dp.txt":       {running: ptr(12), waiting: ptr(2)}, // each data-parallel rank has its own requests
		"sglang_priority.txt": {running: ptr(6), waiting: ptr(1)},
		"other.txt":           {},
	} {
		t.Run(file, func(t *testing.T) {
			raw, err := os.ReadFile("testdata/" + file)
			require.NoError(t, err)
			got, err := readFigures(bytes.NewReader(raw))
			require.NoError(t, err)
			require.Equal(t, want, got)
			got, err = readFigures(iotest.OneByteReader(strings.NewReader(strings.ReplaceAll(string(raw), "\n", "\r\n"))))
			require.NoError(t, err)
			require.Equal(t, want, got, "with CRLF, byte by byte")
		})
	}
}

func TestFiguresOfUnusualLines(t *testing.T) {
	for line, want := range map[string]*int{
		`tgi_queue_size 3`:                  ptr(3), // no line end
		"tgi_queue_size\t3 1700000000000\n": ptr(3),
		`tgi_queue_size{a="}\" {",b="x"} 4`: ptr(4),
		`tgi_queue_size{a="x} 4`:            nil,
		"tgi_queue_size NaN":                nil,
		"tgi_queue_size +Inf":               ptr(maxFigure),
		"tgi_queue_size -1":                 nil,
		"tgi_queue_size":                    nil,
		"tgi_queue_size{}":                  nil,
		"# tgi_queue_size 3":                nil,
		"tgi_queue_sizes 3":                 nil,
		"te_queue_size{a=\"1\",b=\"2\"} 1\nte_queue_size{b=\"2\",a=\"1\"} 3\nte_queue_size{b=\"x\\\"\",a=\"1\"} 4": ptr(7), // one series twice, and another
		"tgi_queue_size{a=\"1\"} 1e9\ntgi_queue_size 1e9\n":                                                        ptr(maxFigure),
		strings.Repeat("x", 100_000) + "\ntgi_queue_size 2":                                                        ptr(2),
		strings.Repeat("x", maxMetricsLine) + "tgi_queue_size 2\n":                                                 nil,
		`tgi_queue_size{a="` + strings.Repeat("x", maxMetricsLine) + `"} 2`:                                        nil,
		strings.Repeat("x 1\n", maxMetricsBytes/4) + "tgi_queue_size 2\n":                                          nil, // past the limit
	} {
		got, err := readFigures(strings.NewReader(line))
		require.NoError(t, err)
		require.Equal(t, want, got.waiting, "%.60q", line)
		require.Nil(t, got.running)
	}
	_, err := readFigures(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("tgi_queue_size 12"))))
	require.ErrorIs(t, err, iotest.ErrTimeout)
}

func FuzzReadFigures(f *testing.F) {
	files, err := os.ReadDir("testdata")
	require.NoError(f, err)
	for _, file := range files {
		if raw, err := os.ReadFile("testdata/" + file.Name()); err == nil {
			f.Add(raw)
		}
	}
	f.Add([]byte(`tgi_queue_size{a="\`))
	f.Add([]byte("vllm:num_requests_running{tp_rank=\"\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var got figures
		var err error
		fuzzing.Bound(t, len(raw), func() { got, err = readFigures(bytes.NewReader(raw)) })
		require.NoError(t, err)
		for _, n := range []*int{got.running, got.waiting} {
			require.True(t, n == nil || *n >= 0 && *n <= maxFigure)
		}
	})
}
