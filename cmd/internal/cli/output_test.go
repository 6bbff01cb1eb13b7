package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestAgo(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0ms ago", 40 * time.Millisecond: "40ms ago", 3 * time.Second: "3s ago", 119 * time.Second: "119s ago",
		5 * time.Minute: "5m ago", 119 * time.Minute: "119m ago", 30 * time.Hour: "30h ago", 72 * time.Hour: "3d ago",
		-10 * time.Second: "in 10s",
	} {
		require.Equal(t, want, Ago(noon.Add(-d), noon))
	}
	require.Empty(t, Ago(time.Time{}, noon))
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 40: "3.0 TiB"} {
		require.Equal(t, want, Size(n))
	}
}

// What strangers wrote must not steer a terminal.
func TestPlain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := Plain(string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")))
		require.True(t, utf8.ValidString(s))
		require.False(t, strings.ContainsFunc(s, unicode.IsControl))
	})
	require.Equal(t, "a·[31mb·c", Plain("a\x1b[31mb\u202ec"))
	require.False(t, IsText([]byte("a\x1b[31m")))
	require.False(t, IsText([]byte{0xff}))
	require.True(t, IsText([]byte("{\n\t\"ä\": 1\r\n}")))
}

func TestTable(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	table := NewTable(&b, "ID", "STATE")
	table.Row("a", "")
	table.Row("long\tid", "x\ny")
	require.NoError(t, table.Flush())
	require.Equal(t, "ID       STATE\na        -\nlong·id  x·y\n", b.String())
}

// shownAt is a cli that writes into a buffer, at noon.
func shownAt() (*Env, *bytes.Buffer) {
	var b bytes.Buffer
	c := New(strings.NewReader(""), &b, &b)
	c.Now = func() time.Time { return noon }
	return c, &b
}

func TestProgressLines(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	now := noon
	c.Now = func() time.Time { return now }
	p := c.Progress("running", 100)
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
	c.StderrTTY = true
	p := c.Progress("running", 3)
	p.Set(1)
	p.Set(3)
	p.Finish()
	require.Contains(t, b.String(), "3/3")
	require.NotContains(t, b.String(), "\x1b[3", "no colours")
}

func TestReport(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	report(&b, UsageError("first\n\tits detail\n  and more\nsecond\x1b[31m"))
	require.Equal(t, "batchyard: first its detail and more\nbatchyard: second·[31m\n", b.String())
}
