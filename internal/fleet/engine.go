package fleet

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// The engines that a device can imitate beyond what all have in common; see test/engines, which runs them.
const (
	// LlamaCPP answers for any model, tells its context, and wants the key everywhere but on /health.
	LlamaCPP = "llamacpp"
	// LiteLLM asks every model for an answer on /health, has another path for whether it lives, and no metrics. Without a
	// database it answers 400 to a wrong key. It goes on with a request whose client has left.
	LiteLLM = "litellm"
)

// Engines lists the names of the engines that a device can imitate.
func Engines() []string { return []string{LlamaCPP, LiteLLM} }

// engineStatus answers what only an imitated engine has or does; done is false for what all engines have.
func (d *Device) engineStatus(w http.ResponseWriter, r *http.Request) (done bool) {
	none := &apiError{status: 404, kind: "not_found_error", message: "File Not Found"}
	path := r.URL.Path
	switch d.spec.Engine {
	case LlamaCPP:
		if err := d.authorize(r); err != nil && path != "/health" {
			writeError(w, d.wrongKey())
			return true
		}
		if path == "/props" {
			b := strconv.AppendInt([]byte(`{"default_generation_settings":{"n_ctx":`), int64(d.limits().Context), 10)
			write(w, http.StatusOK, jsonType, append(b, "}}"...))
			return true
		}
	case LiteLLM:
		if path == "/health/liveliness" {
			write(w, http.StatusOK, jsonType, []byte(`"I'm alive!"`))
			return true
		}
		if err := d.authorize(r); err != nil {
			writeError(w, d.wrongKey())
			return true
		}
		switch path {
		case "/health":
			d.requests.Add(int64(len(d.spec.Models)))
			if wait(r.Context(), d.spec.ServiceTime) != nil {
				hangUp()
			}
		case "/metrics":
			writeError(w, none)
			return true
		}
	}
	if slices.Contains([]string{"/props", "/health/liveliness"}, path) {
		writeError(w, none)
		return true
	}
	return false
}

// meta is what the list of models says of each.
func (d *Device) meta(b []byte) []byte {
	if most := d.limits().Context; d.spec.Engine == LlamaCPP && most > 0 {
		b = append(strconv.AppendInt(append(b, `,"meta":{"n_ctx":`...), int64(most), 10), '}')
	}
	return b
}

// wrongKey is how the device refuses a request without its key.
func (d *Device) wrongKey() *apiError {
	if d.spec.Engine == LiteLLM {
		return &apiError{status: 400, kind: "no_db_connection", code: "400", message: "No connected db."}
	}
	return &apiError{status: 401, kind: "invalid_request_error", code: "invalid_api_key", message: "Incorrect API key provided."}
}

// compute takes as long as a request does.
func (d *Device) compute(ctx context.Context, takes time.Duration) error {
	if d.spec.Engine == LiteLLM { // it does not look whether its client is still there
		if err := wait(context.WithoutCancel(ctx), takes); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return errClientLeft
		}
		return nil
	}
	return wait(ctx, takes)
}
