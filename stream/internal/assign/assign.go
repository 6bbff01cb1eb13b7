// Package assign distributes the partitions of a topic over the members of a consumer group.
package assign

import "slices"

// Sticky spreads n partitions evenly over the members; each keeps as many of those it
// had as its quota allows.
func Sticky(n int, had map[string][]int) map[string][]int {
	members := make([]string, 0, len(had))
	for m := range had {
		members = append(members, m)
	}
	// When n does not divide evenly, those who had most get the extra partitions.
	slices.SortFunc(members, func(a, b string) int {
		if d := len(had[b]) - len(had[a]); d != 0 {
			return d
		}
		if a < b {
			return -1
		}
		return 1
	})
	out := make(map[string][]int, len(members))
	if len(members) == 0 {
		return out
	}
	taken := make([]bool, n)
	quota := make(map[string]int, len(members))
	for i, m := range members {
		quota[m] = n / len(members)
		if i < n%len(members) {
			quota[m]++
		}
		out[m] = []int{}
		for _, p := range had[m] {
			if p >= 0 && p < n && !taken[p] && len(out[m]) < quota[m] {
				taken[p] = true
				out[m] = append(out[m], p)
			}
		}
	}
	i := 0
	for p := range n {
		if taken[p] {
			continue
		}
		for len(out[members[i]]) >= quota[members[i]] {
			i++
		}
		out[members[i]] = append(out[members[i]], p)
	}
	for _, parts := range out {
		slices.Sort(parts)
	}
	return out
}
