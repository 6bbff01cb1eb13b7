package payload

import (
	"encoding/json"

	"github.com/batchyard/batchyard/task"
)

// UsageOf returns the token counts of an answer, under either of their names.
func UsageOf(answer []byte) task.Usage {
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
