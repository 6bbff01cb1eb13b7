package audit

import (
	"encoding/base64"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// A notification on [ResultsChannel] carries short hashes of the tasks that have
// ended, so that a process asks Postgres only about tasks that somebody in it
// waits for. Its text is base64 of eight bytes a task; an unreadable one is
// taken as "any task".

const (
	hashBytes = 8
	// perNotification keeps the text below the 8000 bytes that Postgres takes.
	perNotification = 700
)

type shortHash [hashBytes]byte

func hashOf(k task.Key) shortHash {
	h := k.Hash()
	return shortHash(h[:hashBytes])
}

// queueNotifications adds the notifications to a batch; Postgres delivers them
// when the transaction commits.
func queueNotifications(b *pgx.Batch, taken []*task.Result) {
	for len(taken) > 0 {
		n := min(len(taken), perNotification)
		raw := make([]byte, 0, n*hashBytes)
		for _, r := range taken[:n] {
			h := hashOf(r.Key())
			raw = append(raw, h[:]...)
		}
		b.Queue("SELECT pg_notify($1, $2)", ResultsChannel, base64.RawURLEncoding.EncodeToString(raw))
		taken = taken[n:]
	}
}

// readNotification is the inverse; ok is false for a text that is none of ours.
func readNotification(text string) (hashes []shortHash, ok bool) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) == 0 || len(raw)%hashBytes != 0 {
		return nil, false
	}
	for ; len(raw) > 0; raw = raw[hashBytes:] {
		hashes = append(hashes, shortHash(raw))
	}
	return hashes, true
}
