package task_test

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

	"github.com/batchyard/batchyard/task"
)

// TestActionsMatchTheCode parses all code of the module: every action is a constant in the
// list, never a string literal, and used. (If one slips through, the recorder refuses it.)
func TestActionsMatchTheCode(t *testing.T) {
	t.Parallel()
	constants := actionConstants(t)
	listed := map[string]bool{}
	for _, a := range task.Actions {
		require.NotContains(t, listed, string(a.Action), "listed twice")
		listed[string(a.Action)] = true
		require.NotEmpty(t, a.Stage, a.Action)
		require.NotEmpty(t, a.Meaning, a.Action)
	}
	for name, value := range constants {
		require.Truef(t, listed[value], "task.%s (%s) is not in task.Actions", name, value)
		delete(listed, value)
	}
	require.Empty(t, listed, "in task.Actions, but not a constant")

	used := map[string]bool{}
	root := ".."
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Clean(path) == filepath.Join(root, "task", "action.go") ||
			strings.HasPrefix(filepath.Clean(path), filepath.Join(root, "test")+"/") || strings.HasPrefix(filepath.Clean(path), filepath.Join(root, "bench")+"/") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		l := &actionLook{t: t, set: set, inside: file.Name.Name == "task", constants: constants, used: used}
		ast.Inspect(file, l.node)
		return nil
	}))
	for name, value := range constants {
		require.Truef(t, used[name], "%s (task.%s) is never recorded: remove it from the list, or record it", value, name)
	}
}

// actionConstants are the constants of type Action, by name.
func actionConstants(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "action.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	found := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Action" {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			found[spec.Names[0].Name] = value
		}
		return true
	})
	require.NotEmpty(t, found)
	return found
}

type actionLook struct {
	t         *testing.T
	set       *token.FileSet
	inside    bool // the package is task
	constants map[string]string
	used      map[string]bool
}

// node finds where actions are recorded, and string literals of actions.
func (l *actionLook) node(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.KeyValueExpr:
		if id, ok := n.Key.(*ast.Ident); ok && (id.Name == "Action" || id.Name == "Change") {
			l.value(n.Value)
		}
	case *ast.AssignStmt: // e.Action = …, action := …, e.Action, e.Outcome = …
		for _, v := range n.Rhs {
			l.constant(v)
		}
		for i, left := range n.Lhs {
			if sel, ok := left.(*ast.SelectorExpr); ok && sel.Sel.Name == "Action" && i < len(n.Rhs) {
				l.value(n.Rhs[i])
			}
		}
	case *ast.ReturnStmt:
		for _, v := range n.Results {
			l.constant(v)
		}
	case *ast.CallExpr:
		for _, arg := range n.Args {
			l.constant(arg)
		}
		name := ""
		switch f := n.Fun.(type) {
		case *ast.SelectorExpr:
			name = f.Sel.Name
		case *ast.Ident:
			name = f.Name
		}
		switch {
		case name == "NewEvent" && len(n.Args) > 0:
			l.value(n.Args[0])
		case name == "Action" && len(n.Args) == 1: // converting what was read is fine
			if lit, ok := n.Args[0].(*ast.BasicLit); ok {
				l.t.Errorf("%s: %s is an action as a string literal; use a constant of task.Actions", l.set.Position(lit.Pos()), lit.Value)
			}
		}
	}
	return true
}

// value checks what an event's action is set to.
func (l *actionLook) value(v ast.Expr) {
	if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING && strings.Contains(lit.Value, ".") {
		l.t.Errorf("%s: %s is an action as a string literal; use a constant of task.Actions", l.set.Position(lit.Pos()), lit.Value)
	}
	l.constant(v)
}

func (l *actionLook) constant(v ast.Expr) {
	name := ""
	switch v := v.(type) {
	case *ast.SelectorExpr:
		if pkg, ok := v.X.(*ast.Ident); ok && pkg.Name == "task" {
			name = v.Sel.Name
		}
	case *ast.Ident:
		if l.inside {
			name = v.Name
		}
	}
	if _, ok := l.constants[name]; ok {
		l.used[name] = true
	}
}
