// Package batchyard is the Go client of Batchyard's HTTP API: it submits tasks,
// waits for them, reads their results, and verifies the webhooks that Batchyard
// sends.
//
//	client, err := batchyard.New("http://127.0.0.1:8080", batchyard.WithTenant("acme"))
//	if err != nil {
//		return err
//	}
//	t := &task.Task{Model: "llama-3", Input: task.Input(`{"messages":[{"role":"user","content":"Hello"}]}`)}
//	if err := client.Submit(ctx, t); err != nil {
//		return err
//	}
//	status, err := client.Wait(ctx, t.ID)
//
// # What a nil error means
//
// [Client.Submit] returns nil when every task is durable: all in-sync replicas
// of the log have it. Any error but [ErrInvalid] means that the outcome is
// unknown. Submit gives each task an id before it sends the first byte, and an
// id that is already known is the same task, so submitting the same values again
// is always safe.
//
// [Client.Results] never ends early without an error: half of a job's results
// do not look like all of them.
//
// # Errors
//
// The server's refusals are an [*Error], which names the fields that are wrong. A
// server that could not be reached, or whose answer broke off, is a
// [*ConnectionError]. Either matches one of [ErrInvalid], [ErrUnauthorized],
// [ErrNotFound], [ErrConflict] and [ErrUnavailable] with [errors.Is], which is
// what most callers need.
//
// # Retries
//
// Every request is safe to repeat, so the client retries what matches
// [ErrUnavailable], with exponential backoff and no sooner than the server's
// Retry-After. [WithRetry] changes or disables that.
//
// # Bounds
//
// Every call takes a context. An answer is read up to 64 MiB, a result up to
// 16 MiB, an error document up to 64 KiB, headers up to 64 KiB. A request fails
// after 40 seconds without an answer, a stream of results after 40 seconds
// without a byte. Redirects are refused: one would carry tasks, and the API key,
// to a server that you did not name.
package batchyard
