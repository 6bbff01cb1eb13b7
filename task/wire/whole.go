package wire

import (
	"bytes"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// WholeNumbers writes the integers of a JSON object that have a fraction or an
// exponent, such as 5.0, without it: JSON Schema takes them for integers, many
// languages write them so, and Go's decoder refuses them. like has the fields. It
// returns nil if there is nothing to write differently.
func WholeNumbers(body []byte, like any) []byte {
	var out []byte
	copied := 0
	Members(body, func(name string, value []byte) bool {
		number := bytes.TrimRight(value, " \t\r\n")
		if !bytes.ContainsAny(number, ".eE") || !isInteger(reflect.TypeOf(like).Elem(), name) {
			return true
		}
		f, err := strconv.ParseFloat(string(number), 64)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return true
		}
		at := cap(body) - cap(value) // value is a part of body
		out = append(out, body[copied:at]...)
		out = strconv.AppendInt(out, int64(f), 10)
		copied = at + len(number)
		return true
	})
	if copied == 0 {
		return nil
	}
	return append(out, body[copied:]...)
}

// isInteger reports whether the struct has an integer of the JSON name.
func isInteger(t reflect.Type, name string) bool {
	for f := range t.Fields() {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			kind := f.Type
			if kind.Kind() == reflect.Pointer {
				kind = kind.Elem()
			}
			return kind.Kind() >= reflect.Int && kind.Kind() <= reflect.Int64
		}
	}
	return false
}
