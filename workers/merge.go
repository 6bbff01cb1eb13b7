package workers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/batchyard/batchyard/task"
)

// This file is the only one that looks into inputs and answers.

// body returns the request body of a task: its input with the model that the
// task has now, and without what a batch cannot use.
func body(t *task.Task) ([]byte, error) {
	asItCame, models := true, 0
	whole := task.Members(t.Input, func(key string, value []byte) bool {
		switch key {
		case "model":
			var model string
			models++
			asItCame = models == 1 && json.Unmarshal(value, &model) == nil && model == t.Model
		case "stream", "stream_options":
			asItCame = false
		}
		return asItCame
	})
	if !whole {
		return nil, fmt.Errorf("reading the input of task %s: it is not a JSON object", t.Key())
	}
	if asItCame && models == 1 {
		return t.Input, nil
	}
	model, err := json.Marshal(t.Model)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(t.Input)+len(model)+16)
	out = append(append(out, `{"model":`...), model...)
	task.Members(t.Input, func(key string, value []byte) bool {
		if key != "model" && key != "stream" && key != "stream_options" { // answers are whole
			out = appendMember(out, key, value)
		}
		return true
	})
	return append(out, '}'), nil
}

// appendMember writes a member behind others.
func appendMember(out []byte, key string, value []byte) []byte {
	if c := out[len(out)-1]; c != '{' && c != '[' {
		out = append(out, ',')
	}
	quoted, err := json.Marshal(key)
	if err != nil { // a text is always written
		return out
	}
	out = append(append(out, quoted...), ':')
	return append(out, value...)
}

// maxMembers bounds the members of a request that is merged with others.
const maxMembers = 64

func bodyMembers(t *task.Task) (map[string]json.RawMessage, error) {
	members := map[string]json.RawMessage{}
	n := 0
	if !task.Members(t.Input, func(key string, value []byte) bool {
		members[key] = value
		n++
		return n <= maxMembers
	}) {
		return nil, fmt.Errorf("reading the input of task %s: it is not a JSON object", t.Key())
	}
	if n > maxMembers {
		return nil, fmt.Errorf("the input of task %s has more than %d members", t.Key(), maxMembers)
	}
	model, err := json.Marshal(t.Model)
	if err != nil {
		return nil, err
	}
	members["model"] = model
	delete(members, "stream") // answers are whole
	delete(members, "stream_options")
	return members, nil
}

// listMember is the member of a request that may be a list.
func listMember(endpoint string) string {
	if endpoint == task.EndpointEmbeddings {
		return "input"
	}
	return "prompt"
}

// part is one task's share of a merged request.
type part struct {
	work  *work
	items []json.RawMessage
	list  bool // it was a list already
	size  int
}

// group is tasks whose requests differ in nothing but the list.
type group struct {
	members map[string]json.RawMessage
	parts   []part
	items   int
	each    int // answers an item: n of completions
}

// merge puts tasks into groups of one request each, of at most most items. What
// cannot be merged is in no group: it goes alone.
func merge(endpoint string, works []*work, most int) (groups []*group, alone []*work) {
	member := listMember(endpoint)
	open := map[string]*group{}
	for _, w := range works {
		members, err := bodyMembers(&w.a.Task)
		if err != nil {
			alone = append(alone, w)
			continue
		}
		items, list := itemsOf(members[member], most)
		each := 1
		if n, ok := members["n"]; ok && json.Unmarshal(n, &each) != nil {
			each = 0
		}
		if len(items) == 0 || len(items) > most || each < 1 {
			alone = append(alone, w)
			continue
		}
		p := part{work: w, items: items, list: list, size: len(members[member])}
		delete(members, member)
		key, err := json.Marshal(members) // its members are sorted
		if err != nil {
			alone = append(alone, w)
			continue
		}
		// Texts and tokens do not go into one list.
		kind := string(key) + string(items[0][:1])
		g := open[kind]
		if g == nil || g.items+len(items) > most {
			g = &group{members: members, each: each}
			open[kind] = g
			groups = append(groups, g)
		}
		g.parts = append(g.parts, p)
		g.items += len(items)
	}
	return groups, alone
}

// itemsOf splits the value of a list member: a string is one item, a list of
// strings many, a list of tokens one, a list of lists of tokens many.
// More than most items are none.
func itemsOf(raw json.RawMessage, most int) (items []json.RawMessage, list bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil, false
	}
	if raw[0] == '"' {
		return []json.RawMessage{raw}, false
	}
	tokens := false
	whole := task.Elements(raw, func(item []byte) bool {
		tokens = len(items) == 0 && item[0] != '"' && item[0] != '['
		items = append(items, item)
		return !tokens && len(items) <= most
	})
	switch {
	case !whole, len(items) > most:
		return nil, false
	case tokens: // the list is one item
		return []json.RawMessage{raw}, false
	}
	return items, len(items) > 0
}

// body is the merged request.
func (g *group) body(endpoint string) ([]byte, error) {
	all := make([]json.RawMessage, 0, g.items)
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

// maxBesideList bounds what a merged answer holds beside its list, in bytes: each
// task gets it all.
const maxBesideList = 4 << 10

// split gives each task its share of a merged answer, as if it had been asked
// alone. It fails when the device did not answer every item, or not in the form
// that lists are answered in; then the tasks go one by one.
func (g *group) split(endpoint string, answer []byte) ([][]byte, error) {
	listName := "data"
	if endpoint == task.EndpointCompletions {
		listName = "choices"
	}
	var list, usage []byte
	beside := []byte{'{'}
	if !task.Members(answer, func(key string, value []byte) bool {
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
		return nil, errors.New("reading a merged answer: it is not a JSON object")
	}
	byIndex, err := g.byIndex(list)
	if err != nil {
		return nil, fmt.Errorf("reading %s of a merged answer: %w", listName, err)
	}
	usages := g.splitUsage(usage)
	out := make([][]byte, 0, len(g.parts))
	at := 0
	for pi, p := range g.parts {
		mine := byIndex[at : at+len(p.items)*g.each]
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
			task.Members(e, func(key string, value []byte) bool {
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

// byIndex are the entries of a merged answer in the order of what was asked.
func (g *group) byIndex(list []byte) ([][]byte, error) {
	n, want := 0, g.items*g.each
	byIndex := make([][]byte, want)
	bad := false
	whole := task.Elements(list, func(e []byte) bool {
		if n++; n > want {
			return true // counted, for the error
		}
		i, found := 0, false
		if !task.Members(e, func(key string, value []byte) bool {
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
		return nil, errors.New("it is not a list")
	case n != want:
		return nil, fmt.Errorf("it has %d entries for %d items", n, want)
	case bad:
		return nil, errors.New("an entry has no index of its own")
	}
	return byIndex, nil
}

// splitUsage shares the tokens of a merged answer out by the size of what was
// asked, so that the sum stays what the device said.
func (g *group) splitUsage(raw json.RawMessage) []json.RawMessage {
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
			continue // details are not shared out
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

// usageOf reads the token counts of an answer, in either naming.
func usageOf(answer []byte) task.Usage {
	var a struct {
		Usage struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
			Input      int64 `json:"input_tokens"`
			Output     int64 `json:"output_tokens"`
		} `json:"usage"`
	}
	if json.Unmarshal(answer, &a) != nil {
		return task.Usage{}
	}
	return task.Usage{
		InputTokens:  max(0, a.Usage.Prompt, a.Usage.Input),
		OutputTokens: max(0, a.Usage.Completion, a.Usage.Output),
	}
}

// errorText is what an OpenAI-shaped error says of itself, without anything
// that could be a prompt: its type and code, not its message.
func errorText(answer []byte) string {
	var a struct {
		Error struct {
			Type  string `json:"type"`
			Code  any    `json:"code"`
			Param string `json:"param"`
		} `json:"error"`
	}
	if json.Unmarshal(answer, &a) != nil || !isWord(a.Error.Type) {
		return "the request is not valid for it"
	}
	s := a.Error.Type
	if c, ok := a.Error.Code.(string); ok && isWord(c) {
		s += ", " + c
	}
	if isWord(a.Error.Param) {
		s += ", at " + a.Error.Param
	}
	return s
}

// isWord tells what looks like a class or the name of a member, messages[0].content
// for one, from what may be a sentence, and so a part of a prompt.
func isWord(s string) bool {
	const most = 64
	for _, c := range []byte(s) {
		if c != '_' && c != '.' && c != '[' && c != ']' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != "" && len(s) <= most
}
