package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile  = 1 << 20 // bytes of a configuration file
	maxDepth = 16      // nesting of a configuration file
	maxErrs  = 20      // problems reported at once
)

// Options are the sources of settings. Each one overrides those before it.
type Options struct {
	Path      string            // YAML file; empty means none
	Env       []string          // in the format of os.Environ: BATCHYARD_KAFKA_BROKERS sets kafka.brokers
	Overrides map[string]string // by key, from flags
}

// Error lists all problems of a configuration, one per line.
type Error struct{ Lines []string }

func (e *Error) Error() string { return strings.Join(e.Lines, "\n") }

// Load fills a struct from defaults, file, environment and overrides. If anything
// is wrong, it returns an *Error, and the struct must not be used.
func Load(dst any, o Options) error {
	settings, _ := walk(dst)
	l := &loader{byKey: map[string]*Setting{}, path: o.Path, lines: map[string]int{}, vars: map[string]string{}, invalid: map[string]bool{}}
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
			l.fail(0, "unknown key %s%s", k, l.suggest(k))
			continue
		}
		if err := s.set(o.Overrides[k]); err != nil {
			l.failIf(0, err)
			continue
		}
		delete(l.lines, k)
		delete(l.vars, k)
	}
	for _, s := range settings {
		if l.invalid[s.Key] {
			continue
		}
		err := s.check()
		if name := l.vars[s.Key]; name != "" && err != nil {
			l.fail(0, "environment variable %s: %s", name, err)
			continue
		}
		l.failIf(l.lines[s.Key], err)
	}
	if len(l.errs) == 0 {
		return nil
	}
	if n := len(l.errs) - maxErrs; n > 0 {
		l.errs = append(l.errs[:maxErrs:maxErrs], fmt.Sprintf("and %d more", n))
	}
	return &Error{l.errs}
}

// FillDefaults sets zero fields to their defaults, in structs built in Go. A field
// whose minimum is 0 keeps its zero.
func FillDefaults(dst any) {
	settings, _ := walk(dst)
	for _, s := range settings {
		least, bounded := s.bound(s.Min)
		if s.value.IsZero() && (!bounded || least != 0) {
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
	path    string
	label   string // prefix of the keys in a list entry, such as "batcher.rules[0]."
	byKey   map[string]*Setting
	lines   map[string]int    // line numbers of the keys that the file sets
	vars    map[string]string // environment variables, by the key that they set
	invalid map[string]bool   // keys whose value in the file has the wrong type
	errs    []string
}

func (l *loader) fail(line int, format string, args ...any) {
	where := ""
	if line > 0 {
		where = fmt.Sprintf("%s:%d: ", l.path, line)
	}
	l.errs = append(l.errs, where+strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " "))
}

func (l *loader) failIf(line int, err error) {
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
		v, ok := values[s.Env]
		delete(values, s.Env)
		if ok {
			if err := s.set(v); err != nil { // the setting keeps its previous value
				l.fail(0, "environment variable %s: %s", s.Env, err)
				continue
			}
			l.vars[s.Key] = s.Env
		}
	}
	l.rejectUnknown(values, settings)
}

// rejectUnknown reports variables that look like settings but aren't. It accepts
// variables that a setting names (password_env: BATCHYARD_KAFKA_PASSWORD). It also
// accepts those that don't start with one of our sections, since the client, the
// agent or tests may use them, unless they are a typo or two away from a setting.
func (l *loader) rejectUnknown(values map[string]string, settings []*Setting) {
	names := make([]string, len(settings))
	for i, s := range settings {
		names[i] = s.Env
		if !strings.HasSuffix(s.Key, "_env") {
			continue
		}
		if m, ok := s.value.Interface().(map[string]string); ok {
			for _, name := range m {
				delete(values, name)
			}
		} else {
			delete(values, s.text())
		}
	}
	for _, name := range sortedKeys(values) {
		if !strings.HasPrefix(name, envPrefix) || serviceLink(name, values[name]) {
			continue
		}
		section, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(name, envPrefix)), "_")
		maxDistance, ours := 2, l.isSection(section)
		if ours {
			maxDistance = 5
		}
		if near := nearest(name, names, maxDistance); near != "" {
			l.fail(0, "unknown environment variable %s; did you mean %s?", clip(name), near)
		} else if ours {
			l.fail(0, "unknown environment variable %s: there is no such setting; unset it", clip(name))
		}
	}
}

// serviceLink recognises variables that Kubernetes and Docker set for a service
// called, say, batchyard-kafka.
func serviceLink(name, value string) bool {
	return strings.Contains(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") ||
		strings.Contains(name, "_PORT") && (strings.Contains(value, "://") || strings.Contains(name, "_TCP") || strings.Contains(name, "_UDP"))
}

// file reads the YAML file as nodes, which carry line numbers.
func (l *loader) file() {
	b, err := readFile(l.path)
	if err != nil {
		l.fail(0, "%s", err)
		return
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return // nothing but comments
	} else if err != nil {
		l.fail(0, "%s: invalid YAML: %s", l.path, strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if err := dec.Decode(&second); err == nil {
		l.fail(second.Line, "found a second YAML document: put all settings into one")
		return
	} else if !errors.Is(err, io.EOF) {
		l.fail(0, "%s: invalid YAML: %s", l.path, strings.TrimPrefix(err.Error(), "yaml: "))
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
			return nil, fmt.Errorf("there is no configuration file %s: create one with `batchyard config print --commented > %s`", path, path)
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
		return // an empty section
	}
	if n.Kind != yaml.MappingNode || depth > maxDepth {
		l.fail(n.Line, "%s: expected a section with settings below it", strings.TrimSuffix(orTopLevel(l.label+prefix), "."))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := prefix+n.Content[i].Value, n.Content[i+1]
		line := n.Content[i].Line
		if _, twice := l.lines[key]; twice {
			l.fail(line, "%s is set twice", clip(l.label+key))
			continue
		}
		l.lines[key] = line
		if s := l.byKey[key]; s != nil {
			if s.Type == "list of objects" {
				l.objects(s, value)
			} else if err := s.fromYAML(value); err != nil {
				l.invalid[key] = true
				l.failIf(line, err)
			}
			continue
		}
		if l.isSection(key) {
			l.mapping(value, key+".", depth+1)
			continue
		}
		l.fail(line, "unknown key %s%s", clip(l.label+key), l.suggest(key))
	}
}

func orTopLevel(prefix string) string {
	if prefix == "" {
		return "top level"
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

// suggest completes an error about an unknown key with the key that was probably
// meant: one with a similar spelling, or else one of the same name in another
// section.
func (l *loader) suggest(key string) string {
	var names []string
	for _, k := range sortedKeys(l.byKey) {
		for i := range k { // sections too
			if k[i] == '.' {
				names = append(names, k[:i])
			}
		}
		names = append(names, k)
	}
	last := key[strings.LastIndexByte(key, '.')+1:]
	best := nearest(key, names, max(2, len(last)/3))
	if best == "" && last != "" {
		for _, k := range names {
			if strings.HasSuffix(k, "."+last) {
				best = k
				break
			}
		}
	}
	if best == "" {
		return ": `batchyard config print --commented` lists all keys"
	}
	return "; did you mean " + l.label + best + "?"
}

// nearest returns the name closest to word, or "" if all of them differ by more
// than maxDistance letters.
func nearest(word string, names []string, maxDistance int) string {
	best, least := "", maxDistance+1
	for _, n := range names {
		if len(n) > len(word)+maxDistance || len(word) > len(n)+maxDistance {
			continue // bounds the work, however long the word is
		}
		if d := distance(word, n); d < least {
			best, least = n, d
		}
	}
	return best
}

// fromYAML reads a value from the file.
func (s *Setting) fromYAML(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode:
		return fmt.Errorf("%s: aliases are not supported: write out the value", s.Key)
	case isNull(n):
		return fmt.Errorf("%s: missing value: use %s, or remove the line", s.Key, s.valid())
	case s.Type == "list" && n.Kind == yaml.SequenceNode:
		return s.listFromYAML(n)
	case s.Type == "map" && n.Kind == yaml.MappingNode:
		return s.mapFromYAML(n)
	case n.Kind == yaml.ScalarNode && s.Type != "map":
		return s.set(n.Value)
	case n.Kind == yaml.ScalarNode:
		return s.typeError(n.Value)
	}
	return fmt.Errorf("%s: found a %s: use %s", s.Key, shape(n), s.valid())
}

func (s *Setting) listFromYAML(n *yaml.Node) error {
	list := reflect.MakeSlice(s.value.Type(), 0, len(n.Content))
	for _, c := range n.Content {
		if c.Kind != yaml.ScalarNode || isNull(c) {
			return fmt.Errorf("%s: every entry must be a single value: use %s", s.Key, s.valid())
		}
		list = reflect.Append(list, reflect.ValueOf(c.Value))
	}
	s.value.Set(list)
	return nil
}

func (s *Setting) mapFromYAML(n *yaml.Node) error {
	m := make(map[string]string, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || v.Kind != yaml.ScalarNode || isNull(v) {
			return fmt.Errorf("%s: every entry must be a single value: use %s", s.Key, s.valid())
		}
		if _, twice := m[k.Value]; twice {
			return fmt.Errorf("%s: %q is set twice", s.Key, clip(k.Value))
		}
		m[k.Value] = v.Value
	}
	s.value.Set(reflect.ValueOf(m))
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func shape(n *yaml.Node) string {
	if n.Kind == yaml.SequenceNode {
		return "list"
	}
	return "section"
}

// objects reads a list of structs, each as strictly as the file itself.
func (l *loader) objects(s *Setting, n *yaml.Node) {
	if isNull(n) {
		return // all its entries are commented out
	}
	if n.Kind != yaml.SequenceNode {
		l.invalid[s.Key] = true
		l.fail(n.Line, "%s: expected a list: start each entry with a dash", s.Key)
		return
	}
	list := reflect.MakeSlice(s.value.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		settings, _ := walk(list.Index(i).Addr().Interface())
		e := &loader{
			path: l.path, label: fmt.Sprintf("%s[%d].", s.Key, i),
			byKey: map[string]*Setting{}, lines: map[string]int{}, invalid: map[string]bool{},
		}
		for _, one := range settings {
			e.byKey[one.Key] = one
			one.setDefault()
			one.Key = e.label + one.Key // the name used in errors
		}
		e.mapping(c, "", 1)
		for _, key := range sortedKeys(e.byKey) {
			if !e.invalid[key] {
				e.failIf(e.lines[key], e.byKey[key].check())
			}
		}
		l.errs = append(l.errs, e.errs...)
	}
	s.value.Set(list)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// distance is the Levenshtein distance between two words.
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
