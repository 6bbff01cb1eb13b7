package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration file, in bytes; maxDepth its nesting.
const (
	maxFile  = 1 << 20
	maxDepth = 16
	maxErrs  = 20
)

// Options say where settings come from: each source goes over the one before.
type Options struct {
	Path      string            // YAML file; empty: none
	Env       []string          // as os.Environ gives it: BATCHYARD_KAFKA_BROKERS sets kafka.brokers
	Overrides map[string]string // by key, from flags
}

// Error is everything that is wrong with a configuration, a line each.
type Error struct{ Lines []string }

func (e *Error) Error() string { return strings.Join(e.Lines, "\n") }

// Load fills a struct: defaults, file, environment, overrides. When something is
// wrong, the error is an *Error and the struct is not to be used.
func Load(dst any, o Options) error {
	settings, _ := walk(dst)
	l := &loader{byKey: map[string]*Setting{}, path: o.Path, lines: map[string]int{}, wrong: map[string]bool{}}
	for _, s := range settings {
		l.byKey[s.Key] = s
		s.setDefault()
	}
	if o.Path != "" {
		l.file()
	}
	l.env(o.Env, settings)
	for _, k := range sortedKeys(o.Overrides) {
		s := l.byKey[k]
		if s == nil {
			l.fail(0, "unknown key %s%s", k, l.nearest(k))
			continue
		}
		l.keep(0, s.set(o.Overrides[k]))
	}
	for _, s := range settings {
		if _, bad := l.wrong[s.Key]; !bad {
			l.keep(l.lines[s.Key], s.check())
		}
	}
	if len(l.errs) == 0 {
		return nil
	}
	if n := len(l.errs) - maxErrs; n > 0 {
		l.errs = append(l.errs[:maxErrs:maxErrs], fmt.Sprintf("and %d more", n))
	}
	return &Error{l.errs}
}

// FillDefaults sets the fields that are zero to their defaults, for structs that
// are made in Go.
func FillDefaults(dst any) {
	settings, _ := walk(dst)
	for _, s := range settings {
		if s.value.IsZero() {
			s.setDefault()
		}
	}
}

func (s *Setting) setDefault() {
	if s.Default == "" {
		return
	}
	if err := s.set(s.Default); err != nil {
		panic(fmt.Sprintf("config: the default of %s: %v", s.Key, err))
	}
}

type loader struct {
	path  string
	byKey map[string]*Setting
	lines map[string]int // of the keys that the file sets
	wrong map[string]bool
	errs  []string
}

func (l *loader) fail(line int, format string, args ...any) {
	where := ""
	if line > 0 {
		where = fmt.Sprintf("%s:%d: ", l.path, line)
	}
	l.errs = append(l.errs, where+fmt.Sprintf(format, args...))
}

func (l *loader) keep(line int, err error) {
	if err != nil {
		l.fail(line, "%s", err)
	}
}

func (l *loader) env(env []string, settings []*Setting) {
	values := map[string]string{}
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok {
			values[k] = v
		}
	}
	for _, s := range settings {
		if v, ok := values[s.Env]; ok && s.Type != "list of objects" {
			if err := s.set(v); err != nil {
				l.fail(0, "environment variable %s: %s", s.Env, err)
			}
		}
	}
}

// file reads the YAML file. It is kept as nodes, which know their lines.
func (l *loader) file() {

	b, err := readFile(l.path)
	if err != nil {
		l.fail(0, "%s", err)
		return
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		l.fail(0, "%s: %s", l.path, strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if len(doc.Content) > 0 {
		l.mapping(doc.Content[0], "", 0)
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no configuration file %s; write one with `batchyard config print --commented > %s`", path, path)
		}
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("the configuration %s is larger than %d bytes", path, maxFile)
	}
	return b, nil
}

// mapping reads a section.
func (l *loader) mapping(n *yaml.Node, prefix string, depth int) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section with nothing in it
	}
	if n.Kind != yaml.MappingNode || depth > maxDepth {
		l.fail(n.Line, "%s: it is a section; write its settings below it", strings.TrimSuffix(orWhole(prefix), "."))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := prefix+n.Content[i].Value, n.Content[i+1]
		line := n.Content[i].Line
		if _, twice := l.lines[key]; twice {
			l.fail(line, "%s is set twice", key)
			continue
		}
		l.lines[key] = line
		if s := l.byKey[key]; s != nil {
			if err := s.fromYAML(value, l.path); err != nil {
				l.wrong[key] = true
				l.keep(line, err)
			}
			continue
		}
		if l.isSection(key) {
			l.mapping(value, key+".", depth+1)
			continue
		}
		l.fail(line, "unknown key %s%s", clip(key), l.nearest(key))
	}
}

func orWhole(prefix string) string {
	if prefix == "" {
		return "the file"
	}
	return prefix
}

func (l *loader) isSection(key string) bool {
	for k := range l.byKey {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

// nearest names the key that was probably meant.
func (l *loader) nearest(key string) string {
	best, bestAt := "", len(key)/2+1
	for _, k := range sortedKeys(l.byKey) {
		candidates := []string{k}
		for i := range k { // sections too
			if k[i] == '.' {
				candidates = append(candidates, k[:i])
			}
		}
		for _, c := range candidates {
			if d := distance(key, c); d < bestAt {
				best, bestAt = c, d
			}
		}
	}
	if best == "" {
		return "; see `batchyard config print --commented` for all keys"
	}
	return "; did you mean " + best + "?"
}

// fromYAML reads a value of the file.
func (s *Setting) fromYAML(n *yaml.Node, path string) error {
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("%s: write the value out; aliases are not read", s.Key)
	}
	switch s.Type {
	case "list":
		if n.Kind == yaml.ScalarNode {
			return s.set(n.Value)
		}
		list := reflect.MakeSlice(s.value.Type(), 0, len(n.Content))
		for _, c := range n.Content {
			if n.Kind != yaml.SequenceNode || c.Kind != yaml.ScalarNode {
				return fmt.Errorf("%s: it is no list of texts; write one %s", s.Key, s.example())
			}
			list = reflect.Append(list, reflect.ValueOf(c.Value))
		}
		s.value.Set(list)
		return nil
	case "map":
		m := map[string]string{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Kind != yaml.MappingNode || n.Content[i+1].Kind != yaml.ScalarNode {
				return fmt.Errorf("%s: it is no map of texts; write one %s", s.Key, s.example())
			}
			m[n.Content[i].Value] = n.Content[i+1].Value
		}
		s.value.Set(reflect.ValueOf(m))
		return nil
	case "list of objects":
		return s.objects(n, path)
	}
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("%s: it is one %s; write it %s", s.Key, s.Type, s.example())
	}
	if n.Tag == "!!null" {
		return fmt.Errorf("%s: it has no value; write one %s, or remove the line", s.Key, s.example())
	}
	return s.set(n.Value)
}

// objects reads a list of structs, each as strictly as the file itself.
func (s *Setting) objects(n *yaml.Node, path string) error {
	if n.Kind == yaml.ScalarNode && (n.Tag == "!!null" || n.Value == "") {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("%s: it is no list; begin each entry with a dash", s.Key)
	}
	list := reflect.MakeSlice(s.value.Type(), 0, len(n.Content))
	for i, c := range n.Content {
		entry := reflect.New(s.value.Type().Elem())
		settings, _ := walk(entry.Interface())
		l := &loader{path: path, byKey: map[string]*Setting{}, lines: map[string]int{}, wrong: map[string]bool{}}
		for _, e := range settings {
			l.byKey[e.Key] = e
			e.setDefault()
		}
		l.mapping(c, "", 1)
		for _, e := range settings {
			if !l.wrong[e.Key] {
				l.keep(l.lines[e.Key], e.check())
			}
		}
		if len(l.errs) > 0 {
			return fmt.Errorf("%s[%d]: %s", s.Key, i, strings.Join(l.errs, "; "))
		}
		list = reflect.Append(list, entry.Elem())
	}
	s.value.Set(list)
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// distance is how many letters must change to make one word of the other
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
