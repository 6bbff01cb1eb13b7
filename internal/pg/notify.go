package pg

import "encoding/base64"

// Channels of notifications.
const (
	// ResultsChannel announces finished tasks; see [EncodeNotifications].
	ResultsChannel = "batchyard_results"
	// CallbacksChannel announces that callbacks are due. Its notifications have no text.
	CallbacksChannel = "batchyard_callbacks"
)

const (
	hashBytes = 8
	// perNotification keeps the text below the 8000 bytes that Postgres accepts.
	perNotification = 700
)

// ShortHash stands for a task in a notification. Several tasks may have the same.
type ShortHash [hashBytes]byte

// Shorten returns the short form of a task's hash.
func Shorten(hash [16]byte) ShortHash { return ShortHash(hash[:hashBytes]) }

// EncodeNotifications returns the texts of the notifications on [ResultsChannel] for finished
// tasks: base64 of eight bytes per task, so that a process needs to query only the tasks it waits for.
func EncodeNotifications(hashes []ShortHash) (texts []string) {
	for len(hashes) > 0 {
		n := min(len(hashes), perNotification)
		raw := make([]byte, 0, n*hashBytes)
		for _, h := range hashes[:n] {
			raw = append(raw, h[:]...)
		}
		texts = append(texts, base64.RawURLEncoding.EncodeToString(raw))
		hashes = hashes[n:]
	}
	return texts
}

// DecodeNotification is the inverse of [EncodeNotifications]. ok is false for a text that
// Batchyard did not write: anyone who may connect to the database may notify. Such a text has to
// be taken as "any task".
func DecodeNotification(text string) (hashes []ShortHash, ok bool) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) == 0 || len(raw)%hashBytes != 0 {
		return nil, false
	}
	for ; len(raw) > 0; raw = raw[hashBytes:] {
		hashes = append(hashes, ShortHash(raw))
	}
	return hashes, true
}
