package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// listMember returns the name of a request's member that may be a list.
func listMember(endpoint string) string {
	if endpoint == task.EndpointEmbeddings {
		return "input"
	}
	return "prompt"
}

// part is one task's share of a batched request.
type part struct {
	task  int // which of those that were grouped
	items []json.RawMessage
	size  int
}

// Group is tasks whose requests differ only in the list, so that one request can ask for all.
type Group struct {
	Items          int // of all tasks
	members        map[string]json.RawMessage
	parts          []part
	answersPerItem int // n of completions; else 1
}

// Groups puts tasks into groups with at most most items each. own is the device's name of their model, if it differs. It returns which tasks cannot be grouped as
// singles.
func Groups(endpoint, own string, tasks []*task.Task, most int) (groups []*Group, singles []int) {
	member := listMember(endpoint)
	open := map[string]*Group{}
	for at, t := range tasks {
		members, err := bodyMembers(t, own)
		if err != nil {
			singles = append(singles, at)
			continue
		}
		items := itemsOf(members[member], most)
		each := 1
		if n, ok := members["n"]; ok && json.Unmarshal(n, &each) != nil {
			each = 0
		}
		if len(items) == 0 || len(items) > most || each < 1 {
			singles = append(singles, at)
			continue
		}
		p := part{task: at, items: items, size: len(members[member])}
		delete(members, member)
		key, err := json.Marshal(members) // sorts the members
		if err != nil {
			singles = append(singles, at)
			continue
		}
		// A list holds either texts or tokens.
		kind := string(key) + string(items[0][:1])
		g := open[kind]
		if g == nil || g.Items+len(items) > most {
			g = &Group{members: members, answersPerItem: each}
			open[kind] = g
			groups = append(groups, g)
		}
		g.parts = append(g.parts, p)
		g.Items += len(items)
	}
	return groups, singles
}

// itemsOf splits the value of a list member. A string or a list of tokens is one item; a list of
// strings or of lists of tokens is many. It returns none when there are more than most.
func itemsOf(raw json.RawMessage, most int) (items []json.RawMessage) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil
	}
	if raw[0] == '"' {
		return []json.RawMessage{raw}
	}
	tokens := false
	whole := wire.Elements(raw, func(item []byte) bool {
		tokens = len(items) == 0 && item[0] != '"' && item[0] != '['
		items = append(items, item)
		return !tokens && len(items) <= most
	})
	switch {
	case !whole, len(items) > most:
		return nil
	case tokens: // the list is one item
		return []json.RawMessage{raw}
	}
	return items
}

// Tasks returns which of the tasks that were grouped are in the group, in the order of their answers.
func (g *Group) Tasks() []int {
	out := make([]int, len(g.parts))
	for i, p := range g.parts {
		out[i] = p.task
	}
	return out
}

// Body returns the body of the batched request.
func (g *Group) Body(endpoint string) ([]byte, error) {
	all := make([]json.RawMessage, 0, g.Items)
	for _, p := range g.parts {
		all = append(all, p.items...)
	}
	list, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	members := make(map[string]json.RawMessage, len(g.members)+1)
	for k, v := range g.members {
		members[k] = v
	}
	members[listMember(endpoint)] = list
	return json.Marshal(members)
}

// maxBesideList bounds the members of a batched answer beside its list, in bytes, because each task
// gets a copy.
const maxBesideList = 4 << 10

// Split returns each task's share of a batched answer, in the form of an answer to that task alone. It
// fails when the device did not answer every item in the form that lists are answered in; then
// the tasks are sent one by one.
func (g *Group) Split(endpoint string, answer []byte) ([][]byte, error) {
	listName := "data"
	if endpoint == task.EndpointCompletions {
		listName = "choices"
	}
	var list, usage []byte
	beside := []byte{'{'}
	if !wire.Members(answer, func(key string, value []byte) bool {
		switch key {
		case listName:
			list = value
		case "usage":
			usage = value
		default:
			if len(beside)+len(key)+len(value) <= maxBesideList {
				beside = appendMember(beside, key, value)
			}
		}
		return true
	}) {
		return nil, errors.New("reading a batched answer: not a JSON object")
	}
	byIndex, err := g.byIndex(list)
	if err != nil {
		return nil, fmt.Errorf("reading %s of a batched answer: %w", listName, err)
	}
	usages := g.splitUsage(usage)
	out := make([][]byte, 0, len(g.parts))
	at := 0
	for pi, p := range g.parts {
		mine := byIndex[at : at+len(p.items)*g.answersPerItem]
		at += len(mine)
		size := len(beside) + 64
		for _, e := range mine {
			size += len(e) + 24
		}
		if usages != nil {
			size += len(usages[pi])
		}
		b := append(make([]byte, 0, size), beside...)
		b = appendMember(b, listName, []byte{'['})
		for i, e := range mine {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '{')
			wire.Members(e, func(key string, value []byte) bool {
				if key != "index" {
					b = appendMember(b, key, value)
				}
				return true
			})
			b = append(appendMember(b, "index", strconv.AppendInt(nil, int64(i), 10)), '}')
		}
		b = append(b, ']')
		if usages != nil {
			b = appendMember(b, "usage", usages[pi])
		}
		out = append(out, append(b, '}'))
	}
	return out, nil
}

// byIndex returns the entries of a batched answer in the order of the request's items.
func (g *Group) byIndex(list []byte) ([][]byte, error) {
	n, want := 0, g.Items*g.answersPerItem
	byIndex := make([][]byte, want)
	bad := false
	whole := wire.Elements(list, func(e []byte) bool {
		if n++; n > want {
			return true // only counted, for the error
		}
		i, found := 0, false
		if !wire.Members(e, func(key string, value []byte) bool {
			if key == "index" {
				found = json.Unmarshal(value, &i) == nil
			}
			return true
		}) || !found || i < 0 || i >= want || byIndex[i] != nil {
			bad = true
			return true
		}
		byIndex[i] = e
		return true
	})
	switch {
	case !whole:
		return nil, errors.New("not a list")
	case n != want:
		return nil, fmt.Errorf("%d entries for %d items", n, want)
	case bad:
		return nil, errors.New("an index is missing, out of range, or repeated")
	}
	return byIndex, nil
}

// splitUsage divides the token counts of a batched answer among the tasks in proportion to the size of
// their items; the sum stays the device's.
func (g *Group) splitUsage(raw json.RawMessage) []json.RawMessage {
	if len(raw) > maxBesideList {
		return nil
	}
	var usage map[string]json.RawMessage
	if json.Unmarshal(raw, &usage) != nil {
		return nil
	}
	total := 0
	for _, p := range g.parts {
		total += p.size
	}
	out := make([]json.RawMessage, len(g.parts))
	each := make([]map[string]json.RawMessage, len(g.parts))
	for i := range each {
		each[i] = map[string]json.RawMessage{}
	}
	for name, v := range usage {
		var n int64
		if json.Unmarshal(v, &n) != nil {
			continue // details are dropped
		}
		left := n
		for i, p := range g.parts {
			share := n * int64(p.size) / int64(max(1, total))
			if i == len(g.parts)-1 {
				share = left
			}
			left -= share
			each[i][name] = json.RawMessage(fmt.Sprint(share))
		}
	}
	for i := range each {
		b, err := json.Marshal(each[i])
		if err != nil {
			return nil
		}
		out[i] = b
	}
	return out
}
