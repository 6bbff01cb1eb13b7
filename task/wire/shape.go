package wire

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/batchyard/batchyard/task"
)

// Limits of a record without the input of its task or the output of its result, so that
// reading it takes about as much memory as it is long: otherwise two bytes of "{}" could
// become an attempt of a hundred bytes. A task with every field at its limit stays below
// both.
const (
	maxValues = 2048      // members and elements
	maxRest   = 512 << 10 // bytes
)

// shape describes a value of a record. A nil shape is a value that is ignored, such as that
// of an unknown field.
type shape struct {
	kind   shapeKind
	fields []shapeField // of an object, at most 64
	remedy string       // of an unknown field
	of     *shape       // an element of a list, or a value of a dict
}

type shapeField struct {
	name string
	of   *shape
}

// shapeKind is what a value is.
type shapeKind int

const (
	anything shapeKind = iota
	text
	whole // an integer
	boolean
	moment   // a time
	rawBytes // bytes; base64 in JSON
	object   // a struct
	list
	dict   // a map with names of the sender's choice
	opaque // an input or output: its content is not inspected and not counted
)

var kindNames = [...]string{anything: "value", text: "string", whole: "number", boolean: "boolean", moment: "time", rawBytes: "base64", object: "object", list: "array", dict: "object", opaque: "object"}

func (k shapeKind) String() string { return kindNames[k] }

// The shapes of records. In what a client sends, a task has no progress, which is Batchyard's.
var (
	ownTaskShape = shapeOf(reflect.TypeFor[task.Task]()).remedied("remove it; put your own data into labels or input")
	taskShape    = ownTaskShape.without("progress")
	resultShape  = shapeOf(reflect.TypeFor[task.Result]())
)

func shapeOf(t reflect.Type) *shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[task.Input]() || t == reflect.TypeFor[json.RawMessage]():
		return &shape{kind: opaque}
	case t == reflect.TypeFor[time.Time]():
		return &shape{kind: moment}
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		return &shape{kind: anything}
	}
	switch t.Kind() {
	case reflect.String:
		return &shape{kind: text}
	case reflect.Bool:
		return &shape{kind: boolean}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return &shape{kind: whole}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return &shape{kind: rawBytes}
		}
		return &shape{kind: list, of: shapeOf(t.Elem())}
	case reflect.Map:
		return &shape{kind: dict, of: shapeOf(t.Elem())}
	case reflect.Struct:
		s := &shape{kind: object}
		for f := range t.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
				s.fields = append(s.fields, shapeField{name, shapeOf(f.Type)})
			}
		}
		return s
	}
	return &shape{kind: anything}
}

// remedied sets the remedy of unknown fields.
func (s *shape) remedied(remedy string) *shape {
	s.remedy = remedy
	return s
}

// without returns the shape of an object without one of its fields.
func (s *shape) without(name string) *shape {
	rest := *s
	rest.fields = slices.DeleteFunc(slices.Clone(s.fields), func(f shapeField) bool { return f.name == name })
	return &rest
}

// field returns the index of the field with exactly this name, or -1.
func (s *shape) field(name []byte) int {
	for i := range s.fields {
		if s.fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

// strange returns the error about a name that is not a field's. It returns nil if the name may
// be ignored: that of a newer version's field. A name that differs from a field's only in case
// is never ignored: encoding/json would take it for the field.
func (s *shape) strange(name []byte, unknown strictness) *task.FieldError {
	remedy := cmp.Or(s.remedy, "remove it")
	if string(name) == "progress" && unknown == strict && s == taskShape {
		return task.NewFieldError("progress", "omit it", "it is internal state, which only Batchyard sets")
	}
	near := s.near(string(name))
	switch {
	case unknown == lenient && (near == "" || !strings.EqualFold(near, string(name))):
		return nil
	case near == "":
		return task.NewFieldError(task.Word(string(name)), remedy, "unknown field")
	}
	return task.NewFieldError(task.Word(string(name)), "did you mean `"+near+"`? If not, "+remedy, "unknown field")
}

// near returns the name of the field that was probably meant, or "".
func (s *shape) near(name string) string {
	for i := range s.fields {
		if strings.EqualFold(s.fields[i].name, name) {
			return s.fields[i].name
		}
	}
	const longest = 40
	if len(name) > longest {
		return ""
	}
	letters := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r == '_' || r == '-' || r == ' ' || r == '.' {
				return -1
			}
			return unicode.ToLower(r)
		}, s)
	}
	best, least := "", 3
	for i := range s.fields {
		field := s.fields[i].name
		a, b := letters(name), letters(field)
		if a+"id" == b {
			return field
		}
		if d := editDistance(a, b); d < least && 2*d < len(a) {
			best, least = field, d
		}
	}
	return best
}

// editDistance counts the letters to insert, remove, replace or swap with the next to make
// one text of another.
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replaced := last[j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			row[j] = min(last[j]+1, row[j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// members finds names that an object has twice.
type members struct {
	fields uint64    // those seen, by index
	first  [8][]byte // of a dict: its first names
	n      int       // how many these are
	more   map[string]struct{}
}

// twice adds a member, of a field's index or else by its name, and reports whether the object
// has it already.
func (m *members) twice(field int, name []byte) bool {
	if field >= 0 {
		had := m.fields&(1<<field) != 0
		m.fields |= 1 << field
		return had
	}
	for _, other := range m.first[:m.n] {
		if string(other) == string(name) {
			return true
		}
	}
	if m.n < len(m.first) {
		m.first[m.n] = name
		m.n++
		return false
	}
	if m.more == nil {
		m.more = map[string]struct{}{}
	}
	before := len(m.more)
	m.more[string(name)] = struct{}{}
	return len(m.more) == before
}

// path is where a walk is in a record, for errors: the names of the first few fields.
type path struct {
	names [8][]byte
	depth int
}

func (p *path) enter(name []byte) {
	if p.depth < len(p.names) {
		p.names[p.depth] = name
	}
	p.depth++
}

func (p *path) leave() { p.depth-- }

// at returns the name of the current field and one more, which may be empty.
func (p *path) at(name string) string {
	all := make([]string, 0, len(p.names)+1)
	for _, n := range p.names[:min(p.depth, len(p.names))] {
		all = append(all, task.Word(string(n)))
	}
	if name != "" {
		all = append(all, name)
	}
	return strings.Join(all, ".")
}

func (p *path) duplicate(name []byte) *task.FieldError {
	return task.NewFieldError(p.at(task.Word(string(name))), "send it once", "it is there twice")
}
