package config

import "reflect"

// Change is a setting that is not the same in two configurations. A secret's
// values are masked.
type Change struct {
	Key      string
	Old, New string
	Live     bool // it may change while the program runs
}

// Changes lists what differs between two structs of the same type, in the order
// of their fields.
func Changes(old, now any) []Change {
	before, _ := walk(old)
	after, _ := walk(now)
	var out []Change
	for i, b := range before {
		a := after[i]
		if equal(b.value, a.value) {
			continue
		}
		c := Change{Key: b.Key, Old: b.text(), New: a.text(), Live: b.Live}
		if b.Secret {
			c.Old, c.New = secretMask, secretMask
		}
		out = append(out, c)
	}
	return out
}

// equal compares values of settings; an empty list or map is as good as none.
func equal(a, b reflect.Value) bool {
	if k := a.Kind(); (k == reflect.Map || k == reflect.Slice) && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// Adopt copies the settings that may change while the program runs.
func Adopt(dst, src any) {
	to, _ := walk(dst)
	from, _ := walk(src)
	for i, s := range to {
		if s.Live {
			s.value.Set(from[i].value)
		}
	}
}
