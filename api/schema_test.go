package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// object is a part of an OpenAPI document.
type object = map[string]any

// description is an OpenAPI document that can be asked whether it is sound, and
// whether responses are as it says.
type description struct{ doc object }

func parseDescription(t testing.TB, text []byte) description {
	t.Helper()
	var d description
	require.NoError(t, json.Unmarshal(text, &d.doc))
	return d
}

// at follows names into nested objects; nil if there is nothing.
func at(v any, names ...string) any {
	for _, n := range names {
		o, _ := v.(object)
		v = o[n]
	}
	return v
}

func objects(v any, names ...string) object {
	o, _ := at(v, names...).(object)
	return o
}

// resolve follows a $ref; nil if it leads nowhere.
func (d description) resolve(v any) object {
	o, _ := v.(object)
	for {
		ref, ok := o["$ref"].(string)
		if !ok {
			return o
		}
		names, found := strings.CutPrefix(ref, "#/")
		if !found {
			return nil
		}
		o = objects(d.doc, strings.Split(names, "/")...)
		if o == nil {
			return nil
		}
	}
}

// each calls f with every operation.
func (d description) each(f func(name string, path, method string, op object)) {
	for path, item := range objects(d.doc, "paths") {
		for method, op := range item.(object) {
			f(strings.ToUpper(method)+" "+path, path, strings.ToUpper(method), op.(object))
		}
	}
}

// fits validates a value against a schema. A keyword that it does not know is an
// error, so that none is left unchecked.
func (d description) fits(schema, v any) error {
	if o, ok := schema.(object); ok && o["$ref"] != nil {
		if schema = d.resolve(o); schema.(object) == nil {
			return fmt.Errorf("$ref %v leads nowhere", o["$ref"])
		}
	}
	s, ok := schema.(object)
	if !ok {
		if schema == false {
			return fmt.Errorf("%v is not allowed", v)
		}
		return nil
	}
	for keyword, limit := range s {
		if err := d.keyword(s, keyword, limit, v); err != nil {
			return err
		}
	}
	return nil
}

// keyword checks one keyword of the schema s.
func (d description) keyword(s object, keyword string, limit, v any) error {
	members, _ := v.(object)
	items, _ := v.([]any)
	each := func(name string, schema, v any) error {
		if err := d.fits(schema, v); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	var errs []error
	switch keyword {
	case "description", "default", "examples", "contentMediaType", "contentSchema", "title":
	case "items":
		for i, e := range items {
			errs = append(errs, each(strconv.Itoa(i), limit, e))
		}
	case "properties":
		for name, inner := range limit.(object) {
			if m, has := members[name]; has {
				errs = append(errs, each(name, inner, m))
			}
		}
	case "propertyNames":
		for name := range members {
			errs = append(errs, each(name, limit, name))
		}
	case "additionalProperties":
		for name, m := range members {
			if at(s, "properties", name) == nil {
				errs = append(errs, each(name, limit, m))
			}
		}
	case "required":
		for _, name := range list(limit) {
			if _, has := members[name.(string)]; members != nil && !has {
				errs = append(errs, fmt.Errorf("%v is missing", name))
			}
		}
	case "oneOf", "anyOf":
		fit := 0
		for _, inner := range list(limit) {
			if d.fits(inner, v) == nil {
				fit++
			}
		}
		if fit == 0 || fit > 1 && keyword == "oneOf" {
			errs = append(errs, fmt.Errorf("%v fits %d of %s", clip(fmt.Sprint(v)), fit, keyword))
		}
	case "not":
		if d.fits(limit, v) == nil {
			errs = append(errs, fmt.Errorf("%v fits what it must not", clip(fmt.Sprint(v))))
		}
	default:
		if ok, err := within(keyword, limit, v); err != nil || !ok {
			return cmp.Or(err, fmt.Errorf("%v breaks %s %v", clip(fmt.Sprint(v)), keyword, limit))
		}
	}
	return errors.Join(errs...)
}

// within checks a keyword that looks at the value alone. One that does not apply to
// the type of the value holds; one that is not known is an error.
func within(keyword string, limit, v any) (ok bool, err error) {
	n, _ := limit.(float64)
	size := func(of any) bool { return reflect.TypeOf(v) == reflect.TypeOf(of) }
	number, isNumber := v.(float64)
	text, isText := v.(string)
	switch keyword {
	case "type":
		return slices.ContainsFunc(append(list(limit), limit), func(kind any) bool { return hasType(v, kind) }), nil
	case "enum":
		return slices.ContainsFunc(list(limit), func(e any) bool { return reflect.DeepEqual(e, v) }), nil
	case "pattern":
		return !isText || regexp.MustCompile(limit.(string)).MatchString(text), nil
	case "minLength":
		return !isText || utf8.RuneCountInString(text) >= int(n), nil
	case "maxLength":
		return !isText || utf8.RuneCountInString(text) <= int(n), nil
	case "minimum":
		return !isNumber || number >= n, nil
	case "maximum":
		return !isNumber || number <= n, nil
	case "exclusiveMinimum":
		return !isNumber || number > n, nil
	case "minItems":
		return !size([]any{}) || len(v.([]any)) >= int(n), nil
	case "maxItems":
		return !size([]any{}) || len(v.([]any)) <= int(n), nil
	case "maxProperties":
		return !size(object{}) || len(v.(object)) <= int(n), nil
	case "format":
		switch limit {
		case "date-time":
			_, err := time.Parse(time.RFC3339Nano, text)
			return !isText || err == nil, nil
		case "int64", "double", "uri-reference":
			return true, nil
		}
	}
	return false, fmt.Errorf("unknown keyword %s %v", keyword, limit)
}

func hasType(v, kind any) bool {
	switch v := v.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case float64:
		return kind == "number" || kind == "integer" && v == math.Trunc(v)
	case string:
		return kind == "string"
	case []any:
		return kind == "array"
	case object:
		return kind == "object"
	}
	return false
}

// operation finds the operation of a request; nil if none is described.
func (d description) operation(method, path string) (name string, op object) {
	path, _, _ = strings.Cut(path, "?")
	if method == http.MethodHead {
		method = http.MethodGet
	}
	fewest := math.MaxInt
	d.each(func(n, p, m string, o object) {
		pattern := "^" + placeholder.ReplaceAllString(p, "[^/]+") + "$"
		if holes := strings.Count(p, "{"); m == method && holes < fewest && regexp.MustCompile(pattern).MatchString(path) {
			name, op, fewest = n, o, holes
		}
	})
	return name, op
}

// promised says in what a response differs from the description.
func (d description) promised(method, path string, a answer) error {
	name, op := d.operation(method, path)
	if op == nil {
		if a.status == 404 || a.status == 405 || strings.HasPrefix(path, "/openapi.") {
			return nil
		}
		return fmt.Errorf("%s %s is not described, and answered with %d", method, path, a.status)
	}
	r := d.resolve(at(op, "responses", strconv.Itoa(a.status)))
	if r == nil {
		return fmt.Errorf("%s: %d is not described", name, a.status)
	}
	for header, h := range objects(r, "headers") {
		value := a.header.Get(header)
		if value == "" && header == "Location" {
			continue // an array has none
		}
		var v any = value
		if n, err := strconv.ParseFloat(value, 64); err == nil && at(d.resolve(h), "schema", "type") == "integer" {
			v = n
		}
		if err := d.fits(at(d.resolve(h), "schema"), v); err != nil {
			return fmt.Errorf("%s: %d: header %s: %w", name, a.status, header, err)
		}
	}
	kind, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	content := objects(r, "content", kind)
	if content == nil {
		return fmt.Errorf("%s: %d in %q is not described", name, a.status, kind)
	}
	bodies := [][]byte{[]byte(a.body)}
	schema := content["schema"]
	switch kind {
	case "text/plain":
		return nil
	case resultsType:
		bodies, schema = bytes.Split([]byte(strings.TrimSuffix(a.body, "\n")), []byte("\n")), at(schema, "contentSchema")
	}
	for _, b := range bodies {
		if len(b) == 0 {
			continue // a job without results, or HEAD
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("%s: %d: %w", name, a.status, err)
		}
		if err := d.fits(schema, v); err != nil {
			return fmt.Errorf("%s: %d: %w in %s", name, a.status, err, b)
		}
	}
	return nil
}
