package fault

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestListIsTheCode reads all code of the module: each point that it has is in
// the list, under a name of its own, and none of the list is missing.
func TestListIsTheCode(t *testing.T) {
	t.Parallel()
	listed := map[string]bool{}
	for _, p := range Points {
		require.NotEmpty(t, p.Where, p.Name)
		require.NotContains(t, listed, p.Name, "twice in the list")
		listed[p.Name] = true
	}
	found := map[string]string{}
	root := filepath.Join("..", "..")
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "At" {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "fault" {
				return true
			}
			at := set.Position(call.Pos()).String()
			lit, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the point's name is to be written out", at)
				return true
			}
			name, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Errorf("%s: %v", at, err)
			}
			if before, twice := found[name]; twice {
				t.Errorf("%s: %s is at %s already: a point is one place", at, name, before)
			}
			found[name] = at
			if !listed[name] {
				t.Errorf("%s: %s is not in Points", at, name)
			}
			return true
		})
		return nil
	}))
	for name := range listed {
		if found[name] == "" {
			t.Errorf("%s is in Points and nowhere in the code", name)
		}
	}
}

// TestNormalBuildHasNone is about what users run.
func TestNormalBuildHasNone(t *testing.T) {
	if Enabled {
		t.Skip("this is the build with faults")
	}
	t.Setenv(Env, Points[0].Name)
	require.NoError(t, Arm())
	At(Points[0].Name)
}
