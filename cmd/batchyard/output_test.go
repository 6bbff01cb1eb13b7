package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/task"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestAgo(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0ms ago", 40 * time.Millisecond: "40ms ago", 3 * time.Second: "3s ago", 119 * time.Second: "119s ago",
		5 * time.Minute: "5m ago", 119 * time.Minute: "119m ago", 30 * time.Hour: "30h ago", 72 * time.Hour: "3d ago",
		-10 * time.Second: "in 10s",
	} {
		require.Equal(t, want, ago(noon.Add(-d), noon))
	}
	require.Empty(t, ago(time.Time{}, noon))
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 40: "3.0 TiB"} {
		require.Equal(t, want, size(n))
	}
}

// What strangers wrote must not steer a terminal.
func TestPlain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := plain(string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")))
		require.True(t, utf8.ValidString(s))
		require.False(t, strings.ContainsFunc(s, unicode.IsControl))
	})
	require.Equal(t, "a·[31mb·c", plain("a\x1b[31mb\u202ec"))
	require.False(t, isText([]byte("a\x1b[31m")))
	require.False(t, isText([]byte{0xff}))
	require.True(t, isText([]byte("{\n\t\"ä\": 1\r\n}")))
}

func TestTable(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	table := newTable(&b, "ID", "STATE")
	table.row("a", "")
	table.row("long\tid", "x\ny")
	require.NoError(t, table.flush())
	require.Equal(t, "ID       STATE\na        -\nlong·id  x·y\n", b.String())
}

// shownAt is a cli that writes into a buffer, at noon.
func shownAt() (*cli, *bytes.Buffer) {
	var b bytes.Buffer
	c := newCLI(strings.NewReader(""), &b, &b)
	c.now = func() time.Time { return noon }
	return c, &b
}

func TestTaskList(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	require.NoError(t, c.showTasks(raws(
		`{"task_id":"a-1","state":"RUNNING","model":"m","priority":"high","attempt":1,"device_id":"gpu-1","submitted_at":"2026-11-21T11:59:57Z"}`,
		`{"task_id":"b","state":"FAILED","model":"m","priority":"low","attempt":3,"device_id":"gpu-2","submitted_at":"2026-11-21T11:00:00Z","finished_at":"2026-11-21T11:55:00Z","error":{"class":"timeout","message":"x"}}`,
	), true))
	require.Equal(t, strings.TrimLeft(`
ID   STATE    MODEL  PRIORITY  ATTEMPT  DEVICE  SUBMITTED  FINISHED  ERROR
a-1  RUNNING  m      high      1        gpu-1   3s ago     -         -
b    FAILED   m      low       3        gpu-2   60m ago    5m ago    timeout
`, "\n"), b.String())
}

func TestDeviceList(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	two := 2
	require.NoError(t, c.showDevices([]api.DeviceStatus{
		{ID: "z", URL: "http://z", Models: []string{"*"}, Slots: 1, Silent: true, SeenAt: noon.Add(-time.Hour)},
		{ID: "a", URL: "http://a", Models: []string{"m", "n"}, Tags: []string{"gpu"}, Slots: 8, CPU: 0.256, Mem: 0.5, LatencyMS: 1.26, InFlight: &two, SeenAt: noon.Add(-2 * time.Second)},
	}))
	require.Equal(t, strings.TrimLeft(`
ID  STATE   SLOTS  IN FLIGHT  QUEUE  CPU  MEM  IO  LATENCY  SEEN     MODELS  TAGS  URL
a   up      8      2          -      26%  50%  0%  1.3ms    2s ago   m,n     gpu   http://a
z   silent  1      -          -      0%   0%   0%  0.0ms    60m ago  *       -     http://z
`, "\n"), b.String())
}

func TestSummary(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	s := summary{
		Job: "j", Total: 10, ByState: map[task.State]int{task.Success: 8, task.Failed: 1}, Missing: 1,
		ByDevice: map[string]int{"b": 4, "a": 4}, Elapsed: 2 * time.Second, Output: "out.jsonl",
	}
	require.NoError(t, s.print(&b))
	require.Equal(t, strings.TrimLeft(`
job                 j
tasks               10
  SUCCESS           8
  FAILED            1
  without a result  1
devices             2
  a                 4
  b                 4
time                2s
rate                4.5 tasks/s
results             out.jsonl
`, "\n"), b.String())
	require.Equal(t, exitFailed, codeOf(s.failed()))
	require.ErrorContains(t, s.failed(), "2 of 10 tasks")
	require.NoError(t, (&summary{Total: 1, ByState: map[task.State]int{task.Success: 1}}).failed())
}

func TestProgressLines(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	now := noon
	c.now = func() time.Time { return now }
	p := c.progress("running", 100)
	p.Set(1)
	now = now.Add(lineEvery)
	p.Set(40)
	p.Set(41)
	p.Note("away\x1b")
	p.Note("away\x1b")
	now = now.Add(lineEvery)
	p.Set(100)
	p.Finish()
	require.Equal(t, "running: 40 of 100 tasks, 5s\nrunning: away·\nrunning: 100 of 100 tasks, 10s\n", b.String())
}

func TestProgressBar(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	c.stderrTTY = true
	p := c.progress("running", 3)
	p.Set(1)
	p.Set(3)
	p.Finish()
	require.Contains(t, b.String(), "3/3")
	require.NotContains(t, b.String(), "\x1b[3", "no colours")
}
