package config

import "reflect"

// Change is a setting that differs between two configurations. The values of a
// secret are masked.
type Change struct {
	Key      string
	Old, New string
	Live     bool // a running process can apply the change
}

// Changes lists the settings that differ between two structs of the same type, in
// the order of their fields.
func Changes(old, updated any) []Change {
	before, _ := walk(old)
	after, _ := walk(updated)
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

// equal compares two values of a setting. An empty list or map equals nil.
func equal(a, b reflect.Value) bool {
	if k := a.Kind(); (k == reflect.Map || k == reflect.Slice) && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// Adopt copies the live settings from src to dst.
func Adopt(dst, src any) {
	to, _ := walk(dst)
	from, _ := walk(src)
	for i, s := range to {
		if s.Live {
			s.value.Set(from[i].value)
		}
	}
}
