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
// languages write them so, and Go's decoder refuses them. like has the fields: integers,
// and maps of integers. It returns nil if there is nothing to write differently.
func WholeNumbers(body []byte, like any) []byte {
	t := reflect.TypeOf(like).Elem()
	return wholeMembers(body, func(name string) reflect.Type { return typeOf(t, name) })
}

// wholeMembers does that with an object of whose members it is told the types; nil: any other.
func wholeMembers(body []byte, member func(name string) reflect.Type) []byte {
	var out []byte
	copied := 0
	Members(body, func(name string, value []byte) bool {
		text := bytes.TrimRight(value, " \t\r\n")
		t := member(name)
		if t == nil || !bytes.ContainsAny(text, ".eE") {
			return true
		}
		var written []byte
		if t.Kind() == reflect.Map {
			written = wholeMembers(text, func(string) reflect.Type { return t.Elem() })
		} else {
			written = wholeNumber(text)
		}
		if written == nil {
			return true
		}
		at := cap(body) - cap(value) // value is a part of body
		out = append(append(out, body[copied:at]...), written...)
		copied = at + len(text)
		return true
	})
	if copied == 0 {
		return nil
	}
	return append(out, body[copied:]...)
}

// wholeNumber writes a number without a fraction or an exponent; nil if it is no integer.
func wholeNumber(number []byte) []byte {
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return nil
	}
	return strconv.AppendInt(nil, int64(f), 10)
}

// typeOf returns the type of the struct's member of the JSON name, if that is an integer or a map of integers, and nil
// otherwise.
func typeOf(t reflect.Type, name string) reflect.Type {
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag != name {
			continue
		}
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if isInteger(kind) || kind.Kind() == reflect.Map && isInteger(kind.Elem()) {
			return kind
		}
	}
	return nil
}

func isInteger(t reflect.Type) bool { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64 }
