package producer

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

// Another program may write to the keys of recent tasks.
func FuzzParseRecent(f *testing.F) {
	b, err := json.Marshal(RecentOf(&task.Task{ID: "a", Tenant: "t", Model: "m", Labels: map[string]string{"a": "b"}, Callback: &task.Callback{URL: "http://u"}}))
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"labels":{"":"","a":""}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _, _ = parseRecent(b) })
	})
}
