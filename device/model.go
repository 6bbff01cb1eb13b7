package device

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// AnyModel in a device's list of models means that it serves every model.
const AnyModel = "*"

// latest is the tag that Ollama adds to a name that has none.
const latest = ":latest"

// Serves reports whether the device serves the model.
func (d *Device) Serves(model string) bool {
	_, ok := d.ModelName(model)
	return ok
}

// ModelName returns the device's own name of a model that a task asks for; ok is false if the device does not
// serve it. An alias comes first. As in Ollama, a name without a tag means the tag latest, and the other way round.
func (d *Device) ModelName(model string) (own string, ok bool) {
	if own, ok := d.Aliases[model]; ok {
		return own, true
	}
	every := false
	twin := ""
	for _, m := range d.Models {
		switch {
		case m == model:
			return m, true
		case m == AnyModel:
			every = true
		case sameButLatest(m, model):
			twin = m
		}
	}
	if twin != "" {
		return twin, true
	}
	return model, every
}

// sameButLatest reports whether two different names differ only in that one has the tag latest and the other none.
func sameButLatest(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	return len(b) == len(a)+len(latest) && strings.HasPrefix(b, a) && strings.HasSuffix(b, latest) && !hasTag(a)
}

// hasTag reports whether a name ends with a tag: what follows the last colon, unless that is the port of a registry.
func hasTag(model string) bool {
	at := strings.LastIndexByte(model, ':')
	return at >= 0 && !strings.Contains(model[at:], "/")
}

// maxAliases bounds the aliases of a device.
const maxAliases = 256

func checkAliases(aliases map[string]string) error {
	if len(aliases) > maxAliases {
		return &task.FieldError{Field: "aliases", Problem: fmt.Sprintf("it has %d entries, the limit is %d", len(aliases), maxAliases), Remedy: "send fewer"}
	}
	for name, own := range aliases {
		if checkNames("aliases", []string{name, own}, 2) != nil || name == AnyModel || own == AnyModel {
			return &task.FieldError{Field: "aliases", Problem: fmt.Sprintf("%q for %q is not a pair of model names", clip(name), clip(own)), Remedy: "map the name in tasks to the device's own name"}
		}
	}
	return nil
}

// clip shortens text of others for a message.
func clip(s string) string {
	const most = 40
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "…"
}

// NearestModel returns the one of the names that someone who wrote model has probably meant, or "". Names that differ
// only in case, in what separates words, in the publisher, or in a tag or quantization come first; then those with a
// typing error or two.
func NearestModel(model string, names []string) string {
	best, least := "", 0
	for _, n := range names {
		if n == model || n == AnyModel || utf8.RuneCountInString(n) > task.MaxNameLength {
			continue
		}
		if score := likeness(model, n); score > 0 && (best == "" || score < least || score == least && cmp.Compare(n, best) < 0) {
			best, least = n, score
		}
	}
	return best
}

// likeness is smaller the more alike two names are; 0 means that they are not.
func likeness(a, b string) int {
	a, b = plainName(a), plainName(b)
	switch {
	case a == "" || b == "":
		return 0
	case a == b:
		return 1
	case startsWith(b, a) || startsWith(a, b):
		return 2
	}
	// One typing error for four letters, at most three.
	if d := distance(a, b, min(3, len(a)/4)); d >= 0 {
		return 2 + d
	}
	return 0
}

// startsWith reports whether a name begins with all words of another, as llama-3.1-8b-instruct does with llama-3.1-8b.
func startsWith(long, short string) bool {
	return len(short) >= 3 && strings.HasPrefix(long, short+"-")
}

// plainName returns a name in lower case, without the publisher, folder and file extension, with one kind of separator.
func plainName(name string) string {
	name = strings.ToLower(name)
	name = name[strings.LastIndexAny(name, "/\\")+1:]
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".gguf"), latest)
	words := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '_' || r == ' ' || r == ':' || r == '@' })
	return strings.Join(words, "-")
}

// distance returns the number of letters that have to be inserted, removed or replaced to make b of a; -1 if it is more
// than most.
func distance(a, b string, most int) int {
	if len(a) > len(b)+most || len(b) > len(a)+most {
		return -1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, row[j]+1, before+1)
		}
		if slices.Min(row) > most {
			return -1
		}
	}
	if row[len(b)] > most {
		return -1
	}
	return row[len(b)]
}
