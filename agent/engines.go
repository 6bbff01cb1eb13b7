package agent

import (
	"bufio"
	"bytes"
	"errors"
	"hash/maphash"
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
	loaded           []string       // models in memory
	context          map[string]int // their context lengths
}

func (f figures) known() bool { return f.running != nil || f.waiting != nil }

// engineMetrics are the Prometheus metrics by which engines report their load. Text Embeddings Inference reports only its queue.
var engineMetrics = map[string]struct{ running, waiting bool }{
	"vllm:num_requests_running":    {running: true},
	"vllm:num_requests_waiting":    {waiting: true},
	"llamacpp:requests_processing": {running: true},
	"llamacpp:requests_deferred":   {waiting: true},
	"sglang:num_running_reqs":      {running: true},
	"sglang:num_queue_reqs":        {waiting: true},
	"tgi_batch_current_size":       {running: true},
	"tgi_queue_size":               {waiting: true},
	"te_queue_size":                {waiting: true},
}

// copyLabels tell apart processes that work on the same requests, and so report the same load: the ranks of tensor, pipeline,
// expert and context parallelism. The ranks of data parallelism (dp_rank, or vLLM's engine) have requests of their own.
var copyLabels = map[string]bool{
	"tp_rank": true, "pp_rank": true, "ep_rank": true, "moe_ep_rank": true, "moe_tp_rank": true, "attn_tp_rank": true,
	"cp_rank": true, "attn_cp_rank": true, "dcp_rank": true, "pid": true,
}

// partLabel is of series that are a part of one in which it is empty: SGLang's requests of one priority.
const partLabel = "priority"

// maxSeries bounds the series of a metric that are told apart.
const maxSeries = 4096

// seriesLoad sums a metric over its label sets (a server of several models, or the ranks of data parallelism), each of which
// counts once, with the largest of its copies. Keys are hashes, so that a server cannot fill the memory with labels.
type seriesLoad map[uint64]int

func (l seriesLoad) add(key uint64, n int) {
	if _, known := l[key]; known || len(l) < maxSeries {
		l[key] = max(l[key], n)
	}
}

// total returns the sum; nil if there is no series.
func (l seriesLoad) total() *int {
	if len(l) == 0 {
		return nil
	}
	sum := 0
	for _, n := range l {
		sum = min(sum+n, maxFigure)
	}
	return &sum
}

// loads are the metrics that were found.
type loads struct {
	running, waiting seriesLoad
}

// readFigures reads an engine's metrics line by line, so that the hundreds of kilobytes that some engines send are never in
// memory at once.
func readFigures(r io.Reader) (figures, error) {
	l := loads{running: seriesLoad{}, waiting: seriesLoad{}}
	lines := bufio.NewReaderSize(io.LimitReader(r, maxMetricsBytes), maxMetricsLine)
	skipping := false // inside a line that is too long to be one of these
	for {
		line, err := lines.ReadSlice('\n')
		if !skipping && !errors.Is(err, bufio.ErrBufferFull) {
			l.take(line)
		}
		skipping = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case err == nil, skipping:
		case errors.Is(err, io.EOF):
			return l.figures(), nil
		default:
			return l.figures(), err
		}
	}
}

func (l *loads) figures() figures {
	return figures{running: l.running.total(), waiting: l.waiting.total()}
}

// take parses one line: name{labels} value [timestamp].
func (l *loads) take(line []byte) {
	line = bytes.TrimSpace(line)
	end := bytes.IndexAny(line, "{ \t")
	if end <= 0 || line[0] == '#' {
		return
	}
	wanted, ok := engineMetrics[string(line[:end])]
	if !ok {
		return
	}
	key := seriesHash(line[:end])
	rest := line[end:]
	if rest[0] == '{' {
		labels := labelsEnd(rest)
		if labels < 0 {
			return
		}
		of, whole := keyOf(rest[1 : labels-1])
		if !whole {
			return
		}
		key, rest = key^of, rest[labels:]
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
		l.running.add(key, n)
	}
	if wanted.waiting {
		l.waiting.add(key, n)
	}
}

var seriesSeed = maphash.MakeSeed()

func seriesHash(b []byte) uint64 { return maphash.Bytes(seriesSeed, b) }

// keyOf returns a hash of labels, in any order, without those of copies. whole is false if they name a part of another series.
func keyOf(labels []byte) (key uint64, whole bool) {
	for len(labels) > 0 {
		name, rest, found := bytes.Cut(labels, []byte(`="`))
		if !found {
			break
		}
		end := 0
		for end < len(rest) && rest[end] != '"' {
			if rest[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end, len(rest))
		name = bytes.Trim(name, ", \t")
		switch {
		case string(name) == partLabel && end > 0:
			return 0, false
		case !copyLabels[string(name)]:
			key ^= seriesHash(append(append(bytes.Clone(name), '='), rest[:end]...))
		}
		labels = rest[min(end+1, len(rest)):]
	}
	return key, true
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
