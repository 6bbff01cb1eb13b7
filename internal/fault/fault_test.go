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

// TestPointsMatchTheCode reads all code of the module. Each point in it must be
// listed, each listed point must be in it, and no name may be used twice.
func TestPointsMatchTheCode(t *testing.T) {
	t.Parallel()
	listed := map[string]bool{}
	for _, p := range Points {
		require.NotEmpty(t, p.State, p.Name)
		require.NotContains(t, listed, p.Name, "listed twice")
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
				t.Errorf("%s: the name of the point must be a string literal", at)
				return true
			}
			name, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Errorf("%s: %v", at, err)
			}
			if before, twice := found[name]; twice {
				t.Errorf("%s: %s is already used at %s: each point needs its own name", at, name, before)
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
			t.Errorf("%s is in Points but not in the code", name)
		}
	}
}

// In a normal build, the variable has no effect.
func TestNormalBuildHasNoFaults(t *testing.T) {
	if Enabled {
		t.Skip("this build has faults")
	}
	t.Setenv(Env, Points[0].Name)
	require.NoError(t, Arm())
	At(Points[0].Name)
}
