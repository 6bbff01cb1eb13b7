package device

import (
	"fmt"
	"maps"

	"github.com/batchyard/batchyard/task"
)

// MaxContext bounds the context length of a model, in tokens.
const MaxContext = 1 << 30

// bytesPerToken is more than tokens have on average in any language, so an input of more bytes than that for each token
// of a context does not fit. Only an input with pictures may.
const bytesPerToken = 16

func checkContext(context map[string]int) error {
	if len(context) > MaxModels {
		return &task.FieldError{Field: "context", Problem: fmt.Sprintf("it has %d entries, the limit is %d", len(context), MaxModels), Remedy: "send fewer"}
	}
	for model, tokens := range context {
		if checkNames("context", []string{model}, 1) != nil || tokens < 1 || tokens > MaxContext {
			return &task.FieldError{Field: "context", Problem: fmt.Sprintf("%d tokens for %q are out of range", tokens, clip(model)), Remedy: fmt.Sprintf("send 1 to %d tokens for the device's own name of a model", MaxContext)}
		}
	}
	return nil
}

// ContextOf returns how many tokens the device takes at once for a model that a task asks for, by what it says of itself
// and by what it said when it refused a prompt; 0 if that is not known.
func (d *Device) ContextOf(h *Health, model string) int {
	if n := h.Context[model]; n > 0 {
		return n
	}
	own, _ := d.ModelName(model)
	if n := d.Context[own]; n > 0 {
		return n
	}
	return d.Context[AnyModel]
}

// Contexts returns what is known of the device's models, by its own names of them.
func (d *Device) Contexts(h *Health) map[string]int {
	out := maps.Clone(d.Context)
	for model, n := range h.Context {
		if out == nil {
			out = map[string]int{}
		}
		own, _ := d.ModelName(model)
		out[own] = n
	}
	return out
}

// tooShort reports whether the context of the device is too short for inputs of the size class.
func (d *Device) tooShort(h *Health, want *Requirement) bool {
	if want.Size == 0 || len(d.Context) == 0 && len(h.Context) == 0 {
		return false
	}
	n := d.ContextOf(h, want.Model)
	return n > 0 && want.Size/bytesPerToken > n
}
