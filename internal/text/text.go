// Package text bounds text that comes from outside before it is stored.
package text

import "strings"

// Clip returns the longest valid UTF-8 prefix of s that takes at most n bytes; invalid bytes
// are dropped.
func Clip(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}
