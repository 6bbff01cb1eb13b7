package config

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// secretMask is printed instead of a secret that is set.
const secretMask = "***"

// liveMark says in the documentation that a setting needs no restart.
const liveMark = "can change at runtime"

// Describe lists the settings of a struct.
func Describe(dst any) []Setting {
	settings, _ := walk(dst)
	out := make([]Setting, len(settings))
	for i, s := range settings {
		out[i] = *s
	}
	return out
}

// Style is how WriteYAML writes a file.
type Style int

// The styles.
const (
	Plain     Style = iota // values only
	Commented              // with the meaning, unit, bounds and default of each setting
)

// WriteYAML writes a file that Load can read, with every setting and its current
// value. A secret that differs from its default is masked.
func WriteYAML(w io.Writer, dst any, style Style) error {
	commented := style == Commented
	settings, sections := walk(dst)
	docs := map[string]string{}
	for _, s := range sections {
		docs[s.key] = s.doc
	}
	out := bufio.NewWriter(w)
	if commented {
		comment(out, "", "All settings of Batchyard. A setting that is left out has its default, and an unknown one is an error. "+
			"Environment variables override the file: "+envPrefix+"KAFKA_BROKERS overrides kafka.brokers; separate the items of a list by commas. "+
			"Write durations as 250ms, 5s, 10m, 2h or 90d, and sizes as 64KiB, 4MiB or 1GiB.")
	}
	open := []string{}
	fresh := false // the previous line starts a section
	for _, s := range settings {
		parts := strings.Split(s.Key, ".")
		shared := 0
		for shared < len(open) && shared < len(parts)-1 && open[shared] == parts[shared] {
			shared++
		}
		open = open[:shared]
		for i := shared; i < len(parts)-1; i++ {
			indent := strings.Repeat("  ", i)
			if commented && !fresh {
				fmt.Fprintln(out)
			}
			if doc := docs[strings.Join(parts[:i+1], ".")]; doc != "" && commented {
				comment(out, indent, doc)
			}
			fmt.Fprintf(out, "%s%s:\n", indent, parts[i])
			open = append(open, parts[i])
			fresh = true
		}
		indent := strings.Repeat("  ", len(parts)-1)
		if commented {
			if !fresh {
				fmt.Fprintln(out)
			}
			comment(out, indent, s.note())
			for _, e := range s.entry() {
				comment(out, indent, "- "+e.Key+": "+e.note())
			}
		}
		fresh = false
		value, err := s.yaml()
		if err != nil {
			return fmt.Errorf("writing %s: %w", s.Key, err)
		}
		fmt.Fprintf(out, "%s%s: %s\n", indent, parts[len(parts)-1], value)
	}
	return out.Flush()
}

// note returns the meaning of a setting with its unit, bounds and default.
func (s *Setting) note() string {
	var facts []string
	kind := s.Type
	if s.Unit != "" && s.Unit != "bytes" {
		kind += ", " + s.Unit
	}
	facts = append(facts, kind)
	switch {
	case len(s.Enum) > 0:
		facts[0] = "one of " + strings.Join(s.Enum, ", ")
	case s.Min != "" && s.Max != "":
		facts = append(facts, s.readable(s.Min)+" to "+s.readable(s.Max))
	case s.Min != "":
		facts = append(facts, "at least "+s.readable(s.Min))
	case s.Max != "":
		facts = append(facts, "at most "+s.readable(s.Max))
	}
	if s.Default == "" {
		facts = append(facts, "default: none")
	} else {
		facts = append(facts, "default: "+s.Default)
	}
	if s.Live {
		facts = append(facts, liveMark)
	}
	return s.Doc + " (" + strings.Join(facts, "; ") + ")"
}

// entry returns the settings of each entry, for a list of objects.
func (s *Setting) entry() []*Setting {
	if s.Type != "list of objects" {
		return nil
	}
	settings, _ := walk(reflect.New(s.value.Type().Elem()).Interface())
	return settings
}

func (s *Setting) readable(bound string) string {
	if s.Type == "bytes" {
		if n, err := parseBytes(bound); err == nil {
			return formatBytes(n)
		}
	}
	return bound
}

// yaml returns the current value as a single line of YAML.
func (s *Setting) yaml() (string, error) {
	switch {
	case s.Secret && s.text() != s.Default && s.text() != "":
		return "'" + secretMask + "'", nil
	case s.Type == "duration" || s.Type == "bytes" || s.Type == "integer" || s.Type == "number" || s.Type == "yes/no":
		return s.text(), nil
	case s.Type == "list of objects" && s.value.Len() == 0:
		return "[]", nil
	case s.Type == "map" && s.value.Len() == 0:
		return "{}", nil
	}
	n := &yaml.Node{}
	if err := n.Encode(plain(s.value)); err != nil {
		return "", err
	}
	if n.Kind == yaml.ScalarNode && strings.ContainsAny(n.Value, "\r\n") {
		n.Style = yaml.DoubleQuotedStyle // keeps it on one line
	}
	flow(n)
	b, err := yaml.Marshal(n)
	return strings.TrimSpace(string(b)), err
}

// plain turns a list of structs into a list of maps, by setting name.
func plain(v reflect.Value) any {
	if v.Kind() != reflect.Slice || v.Type().Elem().Kind() != reflect.Struct {
		return v.Interface()
	}
	out := make([]map[string]string, 0, v.Len())
	for i := range v.Len() {
		entry := reflect.New(v.Type().Elem())
		entry.Elem().Set(v.Index(i))
		settings, _ := walk(entry.Interface())
		m := map[string]string{}
		for _, s := range settings {
			m[s.Key] = s.text()
		}
		out = append(out, m)
	}
	return out
}

func flow(n *yaml.Node) {
	n.Style |= yaml.FlowStyle
	for _, c := range n.Content {
		if c.Kind != yaml.ScalarNode {
			flow(c)
		}
	}
}

// comment writes text as a wrapped comment.
func comment(w io.Writer, indent, text string) {
	const width = 96
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width && line != indent+"#" {
			fmt.Fprintln(w, line)
			line = indent + "#"
		}
		line += " " + word
	}
	fmt.Fprintln(w, line)
}

// WriteMarkdown writes the settings as tables, one per section.
func WriteMarkdown(w io.Writer, dst any) error {
	settings, sections := walk(dst)
	docs := map[string]string{}
	for _, s := range sections {
		docs[s.key] = s.doc
	}
	out := bufio.NewWriter(w)
	fmt.Fprint(out, "# Configuration\n\n",
		"Generated from the code by `make config`: edit the tags of the settings, not this page.\n\n",
		"A setting has its default unless one of these sets it, each overriding the ones before: the file given by\n",
		"`-c` (by default `config.yaml` in the current directory, if it exists), an environment variable\n",
		"(`"+envPrefix+"KAFKA_BROKERS` sets `kafka.brokers`), a flag. Unknown keys are errors. `batchyard config check` reports\n",
		"everything that is wrong with a configuration. `batchyard config print` shows the settings in effect, without\n",
		"secrets.\n\n",
		"`batchyard serve` and `batchyard dev` watch the file. They apply changes of settings marked\n",
		"*("+liveMark+")* immediately. Other changes are logged and need a restart. A file with errors\n",
		"changes nothing.\n")
	last := "\x00"
	for _, s := range settings {
		sec := ""
		if i := strings.LastIndexByte(s.Key, '.'); i >= 0 {
			sec = s.Key[:i]
		}
		if sec != last {
			last = sec
			title := sec
			if sec == "" {
				title = "Process"
			}
			fmt.Fprintf(out, "\n## %s\n\n", title)
			if docs[sec] != "" {
				fmt.Fprintf(out, "%s\n\n", docs[sec])
			}
			fmt.Fprintln(out, "| setting | type | default | bounds | meaning |")
			fmt.Fprintln(out, "|---|---|---|---|---|")
		}
		fmt.Fprintf(out, "| `%s` | %s | %s | %s | %s |\n", s.Key, s.kind(), code(s.Default), s.bounds(), strings.ReplaceAll(s.meaning(), "|", "\\|"))
		for _, e := range s.entry() {
			fmt.Fprintf(out, "| `%s[].%s` | %s | %s | %s | %s |\n", s.Key, e.Key, e.kind(), code(e.Default), e.bounds(), strings.ReplaceAll(e.Doc, "|", "\\|"))
		}
	}
	return out.Flush()
}

// meaning returns the setting's meaning, with a mark if it needs no restart.
func (s *Setting) meaning() string {
	if s.Live {
		return s.Doc + " *(" + liveMark + ")*"
	}
	return s.Doc
}

func (s *Setting) kind() string {
	if s.Unit != "" && s.Unit != "bytes" {
		return s.Type + ", " + s.Unit
	}
	return s.Type
}

func (s *Setting) bounds() string {
	switch {
	case len(s.Enum) > 0:
		return strings.Join(s.Enum, ", ")
	case s.Min != "" && s.Max != "":
		return s.readable(s.Min) + " – " + s.readable(s.Max)
	case s.Min != "":
		return "≥ " + s.readable(s.Min)
	case s.Max != "":
		return "≤ " + s.readable(s.Max)
	}
	return ""
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
