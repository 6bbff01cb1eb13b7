package fleet

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// words is the vocabulary of the answers; each word counts as one token.
var words = [64]string{
	"a", "about", "after", "all", "also", "an", "and", "answer", "any", "as", "at", "be", "because", "both", "but", "by",
	"can", "case", "each", "every", "first", "follows", "for", "from", "given", "has", "if", "in", "into", "is", "it", "last",
	"less", "many", "more", "most", "number", "of", "on", "one", "only", "or", "other", "result", "same", "second", "so", "some",
	"step", "sum", "than", "that", "the", "then", "there", "this", "three", "times", "to", "total", "two", "value", "when", "with",
}

// length returns the number of tokens of an answer, 8 to 63 depending on its hash,
// and whether max_tokens truncated it.
func (r *request) length(hash uint64) (n int, truncated bool) {
	n = 8 + int(hash%56)
	if r.maxTokens > 0 && r.maxTokens < n {
		return r.maxTokens, true
	}
	return n, false
}

// choiceHash gives each choice of an item a different text.
func choiceHash(it item, choice int) uint64 { return mix(it.hash + uint64(choice)) }

// work returns what the request costs in tokens.
func (r *request) work() (prompt, output int) {
	for _, it := range r.items {
		prompt += it.tokens
		if !r.kind.generates() {
			continue
		}
		for c := range r.n {
			n, _ := r.length(choiceHash(it, c))
			output += n
		}
	}
	return prompt, output
}

// answer appends the body of the answer to b. It answers only the first `items`
// items: all of them, except with the fault Partial.
func (r *request) answer(b []byte, items int, created int64, dimensions int) []byte {
	id := xxhash.New()
	for _, it := range r.items {
		_, _ = id.Write(binary.LittleEndian.AppendUint64(nil, it.hash)) // never fails
	}
	sum := id.Sum64()
	switch r.kind {
	case chat:
		b = r.head(b, chatEnvelope, sum, created)
		b = r.choices(b, items)
	case completions:
		b = r.head(b, completionEnvelope, sum, created)
		b = r.choices(b, items)
	case responses:
		return r.response(b, sum, created)
	case moderations:
		return r.moderation(b, items, sum)
	case embeddings:
		return r.embedding(b, items, dimensions)
	}
	prompt, output := r.work()
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt), 10)
	b = append(b, `,"completion_tokens":`...)
	b = strconv.AppendInt(b, int64(output), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt+output), 10)
	return append(b, "}}"...)
}

// envelope is how the answers of an endpoint begin: its id prefix, its object type
// and what it calls the creation time.
type envelope struct{ idPrefix, object, createdField string }

var (
	chatEnvelope       = envelope{"chatcmpl-", "chat.completion", "created"}
	completionEnvelope = envelope{"cmpl-", "text_completion", "created"}
	responseEnvelope   = envelope{"resp_", "response", "created_at"}
)

// head appends the fields that an answer begins with.
func (r *request) head(b []byte, e envelope, id uint64, created int64) []byte {
	b = append(b, `{"id":"`...)
	b = appendID(b, e.idPrefix, id)
	b = append(b, `","object":"`...)
	b = append(b, e.object...)
	b = append(b, `","`...)
	b = append(b, e.createdField...)
	b = append(b, `":`...)
	b = strconv.AppendInt(b, created, 10)
	b = append(b, `,"model":`...)
	return append(b, r.model...)
}

func appendID(b []byte, prefix string, id uint64) []byte {
	b = append(b, prefix...)
	const hex = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hex[id>>shift&15])
	}
	return b
}

// choices appends the choices of a chat or of completions: n for each prompt, with
// consecutive indexes.
func (r *request) choices(b []byte, items int) []byte {
	b = append(b, `,"choices":[`...)
	index := 0
	for _, it := range r.items[:items] {
		for c := range r.n {
			if index > 0 {
				b = append(b, ',')
			}
			hash := choiceHash(it, c)
			n, truncated := r.length(hash)
			b = append(b, `{"index":`...)
			b = strconv.AppendInt(b, int64(index), 10)
			if r.kind == chat {
				b = append(b, `,"message":{"role":"assistant","content":"`...)
				b = appendText(b, hash, n)
				b = append(b, `"}`...)
			} else {
				b = append(b, `,"text":"`...)
				b = appendText(b, hash, n)
				b = append(b, '"')
			}
			b = append(b, `,"logprobs":null,"finish_reason":"`...)
			if truncated {
				b = append(b, `length"}`...)
			} else {
				b = append(b, `stop"}`...)
			}
			index++
		}
	}
	return append(b, ']')
}

// appendText appends n words; they need no escaping.
func appendText(b []byte, hash uint64, n int) []byte {
	state := hash
	for i := range n {
		if i%10 == 0 {
			state = mix(state)
		}
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, words[state>>(6*(i%10))&63]...)
	}
	return b
}

func (r *request) response(b []byte, id uint64, created int64) []byte {
	hash := choiceHash(r.items[0], 0)
	n, truncated := r.length(hash)
	status := "completed"
	b = r.head(b, responseEnvelope, id, created)
	if r.background {
		return append(b, `,"error":null,"status":"queued","output":[]}`...)
	}
	if truncated {
		status = "incomplete"
		b = append(b, `,"error":null,"incomplete_details":{"reason":"max_output_tokens"},"status":"`...)
	} else {
		b = append(b, `,"error":null,"incomplete_details":null,"status":"`...)
	}
	b = append(b, status...)
	b = append(b, `","output":[{"type":"message","id":"`...)
	b = appendID(b, "msg_", mix(id))
	b = append(b, `","status":"`...)
	b = append(b, status...)
	b = append(b, `","role":"assistant","content":[{"type":"output_text","text":"`...)
	b = appendText(b, hash, n)
	b = append(b, `","annotations":[]}]}],"usage":{"input_tokens":`...)
	prompt := r.items[0].tokens
	b = strconv.AppendInt(b, int64(prompt), 10)
	b = append(b, `,"output_tokens":`...)
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt+n), 10)
	return append(b, "}}"...)
}

func (r *request) moderation(b []byte, items int, id uint64) []byte {
	b = append(b, `{"id":"`...)
	b = appendID(b, "modr-", id)
	b = append(b, `","model":`...)
	if r.model == nil {
		b = append(b, `"omni-moderation-latest"`...)
	} else {
		b = append(b, r.model...)
	}
	b = append(b, `,"results":[`...)
	categories := [...]string{"harassment", "hate", "self-harm", "sexual", "violence"}
	for i, it := range r.items[:items] {
		if i > 0 {
			b = append(b, ',')
		}
		// One text in 64 is flagged, for the last category.
		flagged := it.hash%64 == 0
		b = append(b, `{"flagged":`...)
		b = strconv.AppendBool(b, flagged)
		b = append(b, `,"categories":{`...)
		for c, name := range categories {
			if c > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendQuote(b, name)
			b = append(b, ':')
			b = strconv.AppendBool(b, flagged && c == len(categories)-1)
		}
		b = append(b, `},"category_scores":{`...)
		for c, name := range categories {
			if c > 0 {
				b = append(b, ',')
			}
			score := unit(mix(it.hash+uint64(c))) / 10
			if flagged && c == len(categories)-1 {
				score += 0.9
			}
			b = strconv.AppendQuote(b, name)
			b = append(b, ':')
			b = strconv.AppendFloat(b, score, 'f', 6, 64)
		}
		b = append(b, "}}"...)
	}
	return append(b, "]}"...)
}

func (r *request) embedding(b []byte, items, dimensions int) []byte {
	b = append(b, `{"object":"list","data":[`...)
	vector := make([]float32, dimensions)
	for i, it := range r.items[:items] {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"object":"embedding","index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"embedding":`...)
		embed(vector, it.hash)
		if r.base64 {
			b = append(b, '"')
			b = appendBase64(b, vector)
			b = append(b, `"}`...)
			continue
		}
		b = append(b, '[')
		for j, x := range vector {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendFloat(b, float64(x), 'g', -1, 32)
		}
		b = append(b, "]}"...)
	}
	prompt, _ := r.work()
	b = append(b, `],"model":`...)
	b = append(b, r.model...)
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt), 10)
	return append(b, "}}"...)
}

// embed fills vector with the embedding of a text: a pseudo-random vector of unit
// length.
func embed(vector []float32, hash uint64) {
	var squares float64
	for j := range vector {
		x := 2*unit(mix(hash^mix(uint64(j)))) - 1
		vector[j] = float32(x)
		squares += x * x
	}
	if squares == 0 {
		return
	}
	scale := float32(1 / math.Sqrt(squares))
	for j := range vector {
		vector[j] *= scale
	}
}

// appendBase64 encodes the vector as little-endian float32s, like the OpenAI API.
func appendBase64(b []byte, vector []float32) []byte {
	raw := make([]byte, 0, 4*len(vector))
	for _, x := range vector {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return base64.StdEncoding.AppendEncode(b, raw)
}
