package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestTheDocumentedChecks runs the programs of docs/audit.md on a real log. They recompute
// everything without any code of ours.
func TestTheDocumentedChecks(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3 here")
	}
	doc, err := os.ReadFile("../docs/audit.md")
	require.NoError(t, err)
	parts := strings.Split(string(doc), "```python\n")
	require.Len(t, parts, 3)
	run := func(part string, args ...string) (string, error) {
		program, _, _ := strings.Cut(part, "```")
		out, err := exec.CommandContext(t.Context(), python, append([]string{"-c", program}, args...)...).CombinedOutput()
		return string(out), err
	}
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	// The statement comes from the page, too.
	_, sql, _ := strings.Cut(string(doc), `-qc "`)
	sql, _, _ = strings.Cut(sql, `" >rows`)
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	path := filepath.Join(t.TempDir(), "rows")
	dump := func() {
		var rows bytes.Buffer
		_, err = conn.Conn().PgConn().CopyTo(t.Context(), &rows, sql)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, rows.Bytes(), 0o600))
	}
	dump()
	out, err := run(parts[1], path)
	require.NoError(t, err, out)
	for _, end := range []string{"events/0 74 ", fmt.Sprintf("events/1 %d ", rig.RowsOfEvents1), fmt.Sprintf("results/0 %d ", rig.RowsOfResults0)} {
		require.Contains(t, out, end)
	}
	require.Contains(t, out, audittest.One[string](t, pool, "SELECT encode(hash, 'hex') FROM audit_chains WHERE topic = 'events' AND partition = 0"))
	_, err = pool.Exec(t.Context(), "UPDATE audit_log SET tenant = 'x' WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = 30")
	require.NoError(t, err)
	dump()
	out, err = run(parts[1], path)
	require.Error(t, err)
	require.Contains(t, out, "events/0: row 30 was changed")

	if _, err := run("import cryptography"); err != nil {
		t.Skip("there is no package cryptography here for the signatures")
	}
	public := filepath.Join(g.Dir, audit.PublicKeyFile)
	out, err = run(parts[2], public, g.File())
	require.NoError(t, err, out)
	require.Equal(t, 3, strings.Count(out, `"number"`))
	lines := g.Lines()
	out, err = run(parts[2], public, g.FileOf(bytes.Replace(lines[1], []byte(`"rows":73`), []byte(`"rows":72`), 1)))
	require.Error(t, err)
	require.Contains(t, out, "InvalidSignature")
}
