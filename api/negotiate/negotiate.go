// Package negotiate reads what a client accepts.
package negotiate

import (
	"mime"
	"strconv"
	"strings"
)

// Acceptable reports whether Accept headers allow one of the content types. Of the
// ranges that match a type the most specific counts; q=0 excludes it.
func Acceptable(headers, sends []string) bool {
	if len(headers) == 0 || len(sends) == 0 {
		return true
	}
	for _, kind := range sends {
		whole, _, _ := mime.ParseMediaType(kind)
		main, _, _ := strings.Cut(whole, "/")
		best, wanted := 0, false
		for r := range strings.SplitSeq(strings.Join(headers, ","), ",") {
			accepted, params, err := mime.ParseMediaType(strings.TrimSpace(r))
			if err != nil {
				continue
			}
			rank := 0
			switch accepted {
			case "*/*":
				rank = 1
			case main + "/*":
				rank = 2
			case whole:
				rank = 3
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			zero := err == nil && q <= 0
			switch {
			case rank == 0 || rank < best:
			case rank > best:
				best, wanted = rank, !zero
			default: // the same range with other parameters
				wanted = wanted || !zero
			}
		}
		if wanted {
			return true
		}
	}
	return false
}
