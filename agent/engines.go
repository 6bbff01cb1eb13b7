package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"strconv"
)

const (
	maxMetricsBytes = 4 << 20
	maxMetricsLine  = 16 << 10
	maxFigure       = 1_000_000_000
)

// figures are the load that an engine reports; nil means not reported.
type figures struct {
	running, waiting *int
}

func (f figures) known() bool { return f.running != nil || f.waiting != nil }

// engineMetrics are the Prometheus metrics by which engines report their load.
var engineMetrics = map[string]struct{ running, waiting bool }{
	"vllm:num_requests_running":    {running: true},
	"vllm:num_requests_waiting":    {waiting: true},
	"llamacpp:requests_processing": {running: true},
	"llamacpp:requests_deferred":   {waiting: true},
	"sglang:num_running_reqs":      {running: true},
	"sglang:num_queue_reqs":        {waiting: true},
	"tgi_batch_current_size":       {running: true},
	"tgi_queue_size":               {waiting: true},
}

// readFigures reads an engine's metrics line by line, so that the hundreds of kilobytes
// that some engines send are never in memory at once. It sums a metric over its label sets
// (a server of several models or engines), but not over the ranks of one tensor- or
// pipeline-parallel group, which report copies.
func readFigures(r io.Reader) (figures, error) {
	var f figures
	lines := bufio.NewReaderSize(io.LimitReader(r, maxMetricsBytes), maxMetricsLine)
	skipping := false // inside a line that is too long to be one of these
	for {
		line, err := lines.ReadSlice('\n')
		if !skipping && !errors.Is(err, bufio.ErrBufferFull) {
			f.take(line)
		}
		skipping = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case err == nil, skipping:
		case errors.Is(err, io.EOF):
			return f, nil
		default:
			return f, err
		}
	}
}

// take parses one line: name{labels} value [timestamp].
func (f *figures) take(line []byte) {
	line = bytes.TrimSpace(line)
	end := bytes.IndexAny(line, "{ \t")
	if end <= 0 || line[0] == '#' {
		return
	}
	wanted, ok := engineMetrics[string(line[:end])]
	if !ok {
		return
	}
	rest := line[end:]
	if rest[0] == '{' {
		labels := labelsEnd(rest)
		if labels < 0 || otherRank(rest[:labels]) {
			return
		}
		rest = rest[labels:]
	}
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return
	}
	value, err := strconv.ParseFloat(string(fields[0]), 64)
	if err != nil || math.IsNaN(value) || value < 0 {
		return
	}
	n := int(math.Round(min(value, maxFigure)))
	if wanted.running {
		f.running = sum(f.running, n)
	}
	if wanted.waiting {
		f.waiting = sum(f.waiting, n)
	}
}

func sum(have *int, n int) *int {
	if have != nil {
		n = min(n+*have, maxFigure)
	}
	return &n
}

// labelsEnd returns the length of the {…} that b starts with, -1 if it has no end.
func labelsEnd(b []byte) int {
	quoted := false
	for i := 1; i < len(b); i++ {
		switch {
		case quoted && b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case b[i] == '}' && !quoted:
			return i + 1
		}
	}
	return -1
}

func otherRank(labels []byte) bool {
	for _, name := range []string{`tp_rank="`, `pp_rank="`} {
		_, value, found := bytes.Cut(labels, []byte(name))
		if found && !bytes.HasPrefix(value, []byte(`0"`)) {
			return true
		}
	}
	return false
}
