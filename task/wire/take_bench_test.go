package wire

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// BenchmarkTakeTask decodes, normalizes and validates a typical task, as routers and the API do.
func BenchmarkTakeTask(b *testing.B) {
	one := &task.Task{ID: "0190f5a1-7b1c-7000-8000-3f1f5b7a9c11", Tenant: "acme", Model: "llama-3.1-8b", Priority: task.High, Labels: map[string]string{"team": "search"}, CustomID: "line-17",
		Input: task.Input(`{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"` + strings.Repeat("Summarise this text, please. ", 30) + `"}],"max_tokens":256,"temperature":0.2}`)}
	for _, contentType := range []string{ContentJSON, ContentMsgpack} {
		b.Run(contentType, func(b *testing.B) {
			record, err := EncodeTask(one, contentType)
			require.NoError(b, err)
			b.ReportAllocs()
			b.SetBytes(int64(len(record)))
			for b.Loop() {
				t, err := DecodeTask(record, contentType)
				require.NoError(b, err)
				t.Normalize(time.Time{})
				require.NoError(b, t.Validate(task.Limits{}))
			}
		})
	}
}
