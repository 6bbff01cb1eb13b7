package config

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting describes a setting.
type Setting struct {
	Key     string // such as "router.window_count"
	Type    string // duration, bytes, integer, number, text, yes/no, list, map, list of objects
	Default string
	Unit    string
	Min     string
	Max     string
	Enum    []string
	Doc     string
	Secret  bool
	Live    bool   // running processes apply a change of the file
	Env     string // the environment variable that sets it

	value reflect.Value
}

// section is a struct of settings.
type section struct{ key, doc string }

var durationType = reflect.TypeFor[time.Duration]()

// walk lists the settings and sections of a struct, in the order of its fields. It
// panics on a mistake in the tags: that is a bug, which every test will find.
func walk(dst any) ([]*Setting, []section) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T is not a pointer to a struct", dst))
	}
	var (
		out      []*Setting
		sections []section
	)
	var rec func(v reflect.Value, prefix string)
	rec = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := f.Tag.Get("yaml")
			if name == "-" || !f.IsExported() {
				continue
			}
			if name == ",inline" { // its settings belong to the struct around it
				rec(v.Field(i), prefix)
				continue
			}
			if name == "" {
				panic(fmt.Sprintf("config: %s.%s has no yaml tag", v.Type(), f.Name))
			}
			key := prefix + name
			if f.Type.Kind() == reflect.Struct {
				sections = append(sections, section{key, f.Tag.Get("doc")})
				rec(v.Field(i), key+".")
				continue
			}
			s := &Setting{
				Key: key, Default: f.Tag.Get("default"), Unit: f.Tag.Get("unit"), Min: f.Tag.Get("min"), Max: f.Tag.Get("max"),
				Doc: f.Tag.Get("doc"), Secret: f.Tag.Get("secret") == "true", Live: f.Tag.Get("live") == "true", Env: envName(key), value: v.Field(i),
			}
			if e := f.Tag.Get("enum"); e != "" {
				s.Enum = strings.Split(e, ",")
			}
			s.Type = typeOf(f.Type, s.Unit)
			out = append(out, s)
		}
	}
	rec(v.Elem(), "")
	return out, sections
}

// envPrefix starts the name of every environment variable.
const envPrefix = "BATCHYARD_"

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

func typeOf(t reflect.Type, unit string) string {
	switch {
	case t == durationType:
		return "duration"
	case unit == "bytes":
		return "bytes"
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Bool:
		return "yes/no"
	case reflect.String:
		return "text"
	case reflect.Map:
		return "map"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return "list of objects"
		}
		return "list"
	}
	panic(fmt.Sprintf("config: type %s is not supported", t))
}

// valid describes valid values, for the remedy in an error: "use " + valid().
func (s *Setting) valid() string {
	switch s.Type {
	case "duration":
		return "a duration such as 250ms, 30s or 12h"
	case "bytes":
		return "a size such as 65536, 512KiB or 4MiB"
	case "integer":
		return "an integer such as 16"
	case "number":
		return "a number such as 0.5"
	case "yes/no":
		return "true or false"
	case "list":
		return "a list such as [a, b]"
	case "map":
		return "a map such as {name: value}"
	}
	return "a string"
}

// set reads a value from text.
func (s *Setting) set(text string) error {
	text = strings.TrimSpace(text)
	v := s.value
	switch s.Type {
	case "text":
		v.SetString(text)
	case "yes/no":
		b, err := strconv.ParseBool(text)
		if err != nil {
			return s.typeError(text)
		}
		v.SetBool(b)
	case "duration":
		d, err := parseDuration(text)
		if err != nil {
			return s.typeError(text)
		}
		v.SetInt(int64(d))
	case "bytes":
		n, err := parseBytes(text)
		if err != nil {
			return s.typeError(text)
		}
		v.SetInt(n)
	case "integer":
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return s.typeError(text)
		}
		v.SetInt(n)
	case "number":
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return s.typeError(text)
		}
		v.SetFloat(f)
	case "list":
		list := reflect.MakeSlice(v.Type(), 0, 4)
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = reflect.Append(list, reflect.ValueOf(item))
			}
		}
		v.Set(list)
	case "map":
		return s.setMap(text)
	default:
		return fmt.Errorf("%s can only be set in the configuration file", s.Key)
	}
	return nil
}

func (s *Setting) setMap(text string) error {
	m := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		k, val, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("%s: invalid pair %q: use name=value, separated by commas", s.Key, clip(pair))
		}
		m[strings.TrimSpace(k)] = strings.TrimSpace(val)
	}
	s.value.Set(reflect.ValueOf(m))
	return nil
}

// typeError is the error for text that is not a value of the setting's type. It
// doesn't quote a secret.
func (s *Setting) typeError(text string) error {
	if s.Secret {
		return fmt.Errorf("%s: invalid value: use %s", s.Key, s.valid())
	}
	return fmt.Errorf("%s: invalid value %q: use %s", s.Key, clip(text), s.valid())
}

// check validates the value against the enum or the bounds.
func (s *Setting) check() error {
	v := s.value
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, v.String()) {
		return fmt.Errorf("%s: %q is not one of %s", s.Key, clip(v.String()), strings.Join(s.Enum, ", "))
	}
	var number float64
	switch s.Type {
	case "integer", "bytes", "duration":
		number = float64(v.Int())
	case "number":
		number = v.Float()
	default:
		return nil
	}
	if lo, ok := s.bound(s.Min); ok && number < lo {
		return fmt.Errorf("%s: %s is too small: the minimum is %s", s.Key, s.text(), s.readable(s.Min))
	}
	if hi, ok := s.bound(s.Max); ok && number > hi {
		return fmt.Errorf("%s: %s is too large: the maximum is %s", s.Key, s.text(), s.readable(s.Max))
	}
	return nil
}

func (s *Setting) bound(tag string) (float64, bool) {
	switch s.Type {
	case "duration":
		if d, err := parseDuration(tag); err == nil {
			return float64(d), true
		}
	case "bytes":
		if n, err := parseBytes(tag); err == nil {
			return float64(n), true
		}
	}
	f, err := strconv.ParseFloat(tag, 64)
	return f, err == nil
}

// text formats the current value the way a person would write it.
func (s *Setting) text() string {
	v := s.value
	switch s.Type {
	case "duration":
		return formatDuration(time.Duration(v.Int()))
	case "bytes":
		return formatBytes(v.Int())
	case "list":
		return strings.Join(v.Interface().([]string), ",")
	}
	return fmt.Sprint(v.Interface())
}

// parseDuration is time.ParseDuration plus days, such as 90d.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n < 0 || n > 100_000 {
			return 0, fmt.Errorf("invalid number of days %q", clip(s))
		}
		return time.Duration(n * 24 * float64(time.Hour)), nil
	}
	return time.ParseDuration(s)
}

func formatDuration(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

var byteUnits = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}}

func parseBytes(s string) (int64, error) {
	unit := int64(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			s, unit = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("invalid size %q", clip(s))
	}
	return n * unit, nil
}

func formatBytes(n int64) string {
	for _, u := range byteUnits[:3] {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// clip shortens user input for an error message.
func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
