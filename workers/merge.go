package workers

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/batchyard/batchyard/task"
)

// This file is the only one that looks into inputs and answers.

// body returns the request body of a task: its input with the model that the
// task has now, and without what a batch cannot use.
func body(t *task.Task) ([]byte, error) {
	var as map[string]json.RawMessage
	if json.Unmarshal(t.Input, &as) == nil && as["stream"] == nil && as["stream_options"] == nil {
		var model string
		if json.Unmarshal(as["model"], &model) == nil && model == t.Model {
			return t.Input, nil // as it came
		}
	}
	members, err := bodyMembers(t)
	if err != nil {
		return nil, err
	}
	return json.Marshal(members)
}

func bodyMembers(t *task.Task) (map[string]json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(t.Input, &members); err != nil {
		return nil, fmt.Errorf("reading the input of task %s: it is not a JSON object", t.Key())
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
		items, list := itemsOf(members[member])
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
func itemsOf(raw json.RawMessage) (items []json.RawMessage, list bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil, false
	}
	if raw[0] == '"' {
		return []json.RawMessage{raw}, false
	}
	if raw[0] != '[' || json.Unmarshal(raw, &items) != nil || len(items) == 0 {
		return nil, false
	}
	if c := items[0][0]; c != '"' && c != '[' { // tokens: the list is one item
		return []json.RawMessage{raw}, false
	}
	return items, true
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

// split gives each task its share of a merged answer, as if it had been asked
// alone. It fails when the device did not answer every item, or not in the form
// that lists are answered in; then the tasks go one by one.
func (g *group) split(endpoint string, answer []byte) ([][]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(answer, &members); err != nil {
		return nil, fmt.Errorf("reading a merged answer: %w", err)
	}
	listName := "data"
	if endpoint == task.EndpointCompletions {
		listName = "choices"
	}
	var entries []map[string]json.RawMessage
	if err := json.Unmarshal(members[listName], &entries); err != nil {
		return nil, fmt.Errorf("reading %s of a merged answer: %w", listName, err)
	}
	if len(entries) != g.items*g.each {
		return nil, fmt.Errorf("a merged answer has %d entries for %d items", len(entries), g.items*g.each)
	}
	byIndex := make([]map[string]json.RawMessage, len(entries))
	for _, e := range entries {
		var i int
		if err := json.Unmarshal(e["index"], &i); err != nil || i < 0 || i >= len(byIndex) || byIndex[i] != nil {
			return nil, fmt.Errorf("an entry of a merged answer has no index of its own")
		}
		byIndex[i] = e
	}
	usages := g.splitUsage(members["usage"])
	out := make([][]byte, 0, len(g.parts))
	at := 0
	for pi, p := range g.parts {
		mine := byIndex[at : at+len(p.items)*g.each]
		at += len(mine)
		for i, e := range mine {
			e["index"] = json.RawMessage(fmt.Sprint(i))
		}
		list, err := json.Marshal(mine)
		if err != nil {
			return nil, err
		}
		answer := make(map[string]json.RawMessage, len(members))
		for k, v := range members {
			answer[k] = v
		}
		answer[listName] = list
		if usages != nil {
			answer["usage"] = usages[pi]
		}
		b, err := json.Marshal(answer)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// splitUsage shares the tokens of a merged answer out by the size of what was
// asked, so that the sum stays what the device said.
func (g *group) splitUsage(raw json.RawMessage) []json.RawMessage {
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
	if json.Unmarshal(answer, &a) != nil || a.Error.Type == "" {
		return "the request is not valid for it"
	}
	s := a.Error.Type
	if c, ok := a.Error.Code.(string); ok && c != "" {
		s += ", " + c
	}
	if a.Error.Param != "" {
		s += ", at " + a.Error.Param
	}
	return short(s, 200)
}
