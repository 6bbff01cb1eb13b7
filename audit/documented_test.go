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
	"github.com/batchyard/batchyard/audit/prove"
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
	require.Len(t, parts, 4)
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
	out, err = run(parts[3], public, g.File())
	require.NoError(t, err, out)
	require.Equal(t, 3, strings.Count(out, `"number"`))
	lines := g.Lines()
	for says, file := range map[string]string{
		"it is not the last of its log": g.FileOf(bytes.Replace(lines[1], []byte(`"rows":73`), []byte(`"rows":72`), 1)),
		"it does not continue the log":  g.FileOf(lines[0], lines[2]),
		"InvalidSignature":              g.FileOf(bytes.Replace(lines[1], []byte(`\n2\n`), []byte(`\n3\n`), 1)),
	} {
		out, err = run(parts[3], public, file)
		require.Error(t, err, says)
		require.Contains(t, out, says)
	}
}

// TestTheDocumentedCheckOfAProof checks a proof of ours with the program of docs/audit.md.
func TestTheDocumentedCheckOfAProof(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil || exec.CommandContext(t.Context(), python, "-c", "import cryptography").Run() != nil {
		t.Skip("there is no python3 with the package cryptography here")
	}
	doc, err := os.ReadFile("../docs/audit.md")
	require.NoError(t, err)
	program, _, _ := strings.Cut(strings.Split(string(doc), "```python\n")[2], "```")
	pool := audittest.NewPool(t)
	g, _ := rig.Grown(t, pool)
	c, err := audit.ParseCheckpoint(g.Lines()[2])
	require.NoError(t, err)
	var proof bytes.Buffer
	_, rows, err := prove.Write(t.Context(), pool, prove.Request{ProofSubject: audit.ProofSubject{Tenant: "acme", Task: "t3-1"}, Candidates: []prove.Candidate{{SignedCheckpoint: c, Signed: c.Note}}}, &proof)
	require.NoError(t, err)
	require.Greater(t, rows, 3)
	run := func(key string, proof string) (string, error) {
		path := filepath.Join(t.TempDir(), "proof")
		require.NoError(t, os.WriteFile(path, []byte(proof), 0o600))
		out, err := exec.CommandContext(t.Context(), python, "-c", program, key, path).CombinedOutput()
		return string(out), err
	}
	public := filepath.Join(g.Dir, audit.PublicKeyFile)
	out, err := run(public, proof.String())
	require.NoError(t, err, out)
	require.Equal(t, rows, strings.Count(out, "\n"))
	require.Contains(t, out, "t3-1")
	first, rest, _ := strings.Cut(proof.String(), "\n")
	for what, forged := range map[string]string{
		"a row":          first + "\n" + strings.Replace(rest, `"prev":"`, `"prev":"A`, 1),
		"its place":      first + "\n" + strings.Replace(rest, `"row":`, `"row":1`, 1),
		"one less":       proof.String()[:strings.LastIndex(strings.TrimSpace(proof.String()), "\n")+1],
		"the checkpoint": strings.Replace(first, `\"rows\":74`, `\"rows\":75`, 1) + "\n" + rest,
		"the note":       strings.Replace(first, `\n3\n`, `\n4\n`, 1) + "\n" + rest,
	} {
		require.NotEqual(t, proof.String(), forged, what)
		out, err := run(public, forged)
		require.Error(t, err, "%s: %s", what, out)
	}
	other, _ := rig.Grown(t, audittest.NewPool(t))
	out, err = run(filepath.Join(other.Dir, audit.PublicKeyFile), proof.String())
	require.Error(t, err)
	require.Contains(t, out, "InvalidSignature")
}
