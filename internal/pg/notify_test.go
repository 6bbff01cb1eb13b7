package pg

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

func TestNotificationsCarryEveryTask(t *testing.T) {
	t.Parallel()
	var hashes []ShortHash
	want := map[ShortHash]bool{}
	for i := range 2*perNotification + 1 {
		h := Shorten(task.Key{Tenant: "acme", ID: fmt.Sprint(i)}.Hash())
		hashes = append(hashes, h)
		want[h] = true
	}
	texts := EncodeNotifications(hashes)
	require.Len(t, texts, 3)
	for _, text := range texts {
		require.Less(t, len(text), 8000)
		hashes, ok := DecodeNotification(text)
		require.True(t, ok)
		for _, h := range hashes {
			delete(want, h)
		}
	}
	require.Empty(t, want)
	for _, text := range []string{"", "?", "AAAA"} {
		_, ok := DecodeNotification(text)
		require.False(t, ok, text)
	}
}

// FuzzDecodeNotification: anybody who may connect to the database may notify.
func FuzzDecodeNotification(f *testing.F) {
	f.Add("")
	f.Add("AAAAAAAAAAA")
	h := Shorten(task.Key{Tenant: "t", ID: "a"}.Hash())
	f.Add(string(h[:]))
	f.Fuzz(func(t *testing.T, text string) {
		fuzzing.Bound(t, len(text), func() { DecodeNotification(text) })
		hashes, ok := DecodeNotification(text)
		require.Equal(t, ok, len(hashes) > 0)
	})
}
