// Package architecture holds the tests of the code's structure: the floors that imports go
// down, the bounds on sizes, and the places that ARCHITECTURE.md names.
package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/batchyard/batchyard"

// floors lists the floors of the house from the ground up; a package belongs to the entry that
// matches most of its path. Imports go down. Within a floor they stay inside one family.
var floors = [][]string{
	{"task", "migrations", "internal"},
	{"device", "stream", "audit"},
	{"producer", "router", "batcher", "workers", "audit/recorder", "audit/verify", "audit/query", "callbacks", "status"},
	{"jobs"},
	{".", "api", "agent"},
	{"cmd", "bench", "test", "examples"},
}

// forTests may be imported by the tests of every floor. Tests may also use their neighbours.
var forTests = []string{"test/testenv", "test/harness", "test/audittest"}

// Bounds on sizes, in lines.
const (
	maxPackage  = 3600 // without tests
	maxFile     = 500  // without tests
	maxFunction = 80
)

// sourceFile is a parsed file of the repository.
type sourceFile struct {
	name  string // relative to the root, with slashes
	test  bool
	lines int
	fset  *token.FileSet
	file  *ast.File
}

func (f *sourceFile) dir() string { return path.Dir(f.name) }

// root is the top of the repository.
func root(t *testing.T) string {
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(dir, "go.mod"))
	require.NoError(t, err)
	return dir
}

// sources parses every Go file of the repository.
func sources(t *testing.T) []*sourceFile {
	top := root(t)
	var all []*sourceFile
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && name != top && (strings.HasPrefix(base, ".") || base == "testdata" || base == "dist" || base == "bin" || base == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		all = append(all, &sourceFile{
			name: filepath.ToSlash(rel), test: strings.HasSuffix(base, "_test.go"),
			lines: strings.Count(string(text), "\n"), fset: fset, file: file,
		})
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(all), 300, "the walk missed most of the repository")
	return all
}

// floorOf returns the floor of a package, and the entry of floors that decides it; -1 when none does.
func floorOf(dir string) (floor int, entry string) {
	floor = -1
	for i, entries := range floors {
		for _, e := range entries {
			if (dir == e || strings.HasPrefix(dir, e+"/")) && len(e) > len(entry) {
				floor, entry = i, e
			}
		}
	}
	return floor, entry
}

// upward says what is wrong with an import; empty when it goes down.
func upward(from, to string, test bool) string {
	for _, dir := range forTests {
		if test && (to == dir || strings.HasPrefix(to, dir+"/")) {
			return ""
		}
	}
	a, family := floorOf(from)
	b, other := floorOf(to)
	switch {
	case a < 0 || b < 0:
		return "is on no floor: add it to floors"
	case b > a:
		return "is on a higher floor"
	case b == a && family != other && a > 0 && a < len(floors)-1 && !test:
		return "is a neighbour on the same floor"
	}
	return ""
}

func TestImportsGoDown(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		for _, spec := range f.file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			to, ours := strings.CutPrefix(name, module)
			if !ours {
				continue
			}
			to = strings.TrimPrefix(to, "/")
			if to == "" {
				to = "."
			}
			if problem := upward(f.dir(), to, f.test); problem != "" {
				t.Errorf("%s imports %s, which %s", f.name, to, problem)
			}
		}
	}
}

func TestUpwardImportsAreFound(t *testing.T) {
	t.Parallel()
	require.NotEmpty(t, upward("stream", "router", false))
	require.NotEmpty(t, upward("task", "device", false))
	require.NotEmpty(t, upward("internal/config", "cmd/internal/app", false))
	require.NotEmpty(t, upward("batcher", "workers", false))
	require.NotEmpty(t, upward("audit", "audit/recorder", false))
	require.NotEmpty(t, upward("audit/query", "audit/verify", false))
	require.NotEmpty(t, upward("stream", "test/testenv", false))
	require.Empty(t, upward("stream", "test/testenv", true))
	require.Empty(t, upward("router", "router/decide", false))
	require.Empty(t, upward("api", "audit/query", false))
}

func TestSizesAreBounded(t *testing.T) {
	t.Parallel()
	packages := map[string]int{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		packages[f.dir()] += f.lines
		if f.lines > maxFile {
			t.Errorf("%s has %d lines, more than %d: what is it really?", f.name, f.lines, maxFile)
		}
		for _, d := range f.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			first, last := f.fset.Position(fn.Pos()).Line, f.fset.Position(fn.End()).Line
			if last-first+1 > maxFunction {
				t.Errorf("%s: %s has %d lines, more than %d", f.name, fn.Name.Name, last-first+1, maxFunction)
			}
		}
	}
	for dir, lines := range packages {
		if lines > maxPackage {
			t.Errorf("package %s has %d lines, more than %d", dir, lines, maxPackage)
		}
	}
}

// quoted finds `code` in Markdown.
var quoted = regexp.MustCompile("`([^`\n]+)`")

// fenced finds blocks between lines of three backquotes.
var fenced = regexp.MustCompile("(?ms)^```.*?^```")

func TestPlacesToLookExist(t *testing.T) {
	t.Parallel()
	top := root(t)
	text, err := os.ReadFile(filepath.Join(top, "ARCHITECTURE.md"))
	require.NoError(t, err)
	_, after, ok := strings.Cut(string(text), "## Where to look\n")
	require.True(t, ok, "ARCHITECTURE.md has no section Where to look")
	table, _, _ := strings.Cut(after, "\n## ")
	declared := symbols(sources(t))
	checked := 0
	for _, m := range quoted.FindAllStringSubmatch(table, -1) {
		name := m[1]
		if strings.ContainsAny(name, " <>=\"'/") || !strings.Contains(name, ".") {
			continue // a command, a statement, or a path
		}
		if !declared[name] {
			t.Errorf("ARCHITECTURE.md, Where to look: nothing declares %s", name)
		}
		checked++
	}
	for _, m := range quoted.FindAllStringSubmatch(fenced.ReplaceAllString(string(text), ""), -1) {
		name := m[1]
		if !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".sql") || strings.ContainsAny(name, " *") {
			continue
		}
		if _, err := os.Stat(filepath.Join(top, filepath.FromSlash(name))); err != nil {
			t.Errorf("ARCHITECTURE.md names %s, and there is no such file", name)
		}
		checked++
	}
	require.Greater(t, checked, 40, "the page was not read")
}

// symbols returns what the files declare: pkg.Name, and pkg.Type.Member or Type.Member for methods and fields.
func symbols(files []*sourceFile) map[string]bool {
	out := map[string]bool{}
	for _, f := range files {
		pkg := strings.TrimSuffix(f.file.Name.Name, "_test")
		for _, d := range f.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					out[pkg+"."+d.Name.Name] = true
				} else if recv := receiver(d.Recv.List[0].Type); recv != "" {
					out[recv+"."+d.Name.Name], out[pkg+"."+recv+"."+d.Name.Name] = true, true
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						out[pkg+"."+s.Name.Name] = true
					case *ast.ValueSpec:
						for _, n := range s.Names {
							out[pkg+"."+n.Name] = true
						}
					}
				}
			}
		}
	}
	return out
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
