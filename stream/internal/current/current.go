// Package current collects the partitions that a consumer keeps up with, until it is time to report them.
package current

import (
	"maps"
	"slices"
	"time"
)

// Report collects partitions. The zero value is empty.
type Report struct {
	fresh map[int]bool // since the last report
	known map[int]bool // in the last report
	last  time.Time
	news  bool // a partition is fresh that was not in the last report
}

// Add notes that all of a partition was handed out.
func (r *Report) Add(partition int) {
	if r.fresh == nil {
		r.fresh = map[int]bool{}
	}
	r.fresh[partition] = true
	r.news = r.news || !r.known[partition]
}

// Due returns the partitions that were added since it last did so; nil if there is none, or the last time
// is not so long ago. It does not wait for a partition that was not reported the last time, because a
// device may wait for it.
func (r *Report) Due(now time.Time, every time.Duration) []int {
	if len(r.fresh) == 0 || !r.news && now.Sub(r.last) < every {
		return nil
	}
	ids := slices.Sorted(maps.Keys(r.fresh))
	r.known, r.fresh, r.last, r.news = r.fresh, nil, now, false
	return ids
}
