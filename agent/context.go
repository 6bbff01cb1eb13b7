package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// contexts returns how many tokens the device takes at once, by its own names of models, as far as it says so; asked
// now and then. Engines say it in different places:
//
//	GET /v1/models   max_model_len, or meta.n_ctx of a slot, by model   vLLM, SGLang; llama.cpp
//	GET /props       default_generation_settings.n_ctx, of a slot       llama.cpp until 2025
//	GET /info        max_total_tokens, or max_input_length              TGI, TEI
//	GET /api/ps      context_length of each loaded model                Ollama; see load
func (d *device) contexts(ctx context.Context) (map[string]int, error) {
	if !d.contextAt.IsZero() && time.Since(d.contextAt) < lookAgain {
		return d.context, nil
	}
	d.contextAt = time.Now()
	if len(d.cfg.Models) > 0 { // otherwise it has just been asked for its list
		// It may have none. But servers without a key on their health say here that tasks will not get an answer, either.
		if _, err := d.listModels(ctx); errors.Is(err, errWrongKey) {
			return nil, fmt.Errorf("listing its models: %w", err)
		}
	}
	known := d.listed
	if len(known) == 0 && slices.Contains([]string{"", "auto", "llamacpp"}, d.cfg.Engine) {
		known = d.props(ctx)
	}
	if len(known) == 0 && slices.Contains([]string{"", "auto", "tgi", "tei"}, d.cfg.Engine) {
		known = d.info(ctx)
	}
	d.context = known
	return known, nil
}

// forget makes the next heartbeat ask again for what seldom changes: the device has been away, and may be another one now.
func (d *device) forget() { d.contextAt, d.modelsAt = time.Time{}, time.Time{} }

// props asks llama.cpp. A slot has a part of the context that it was started with.
func (d *device) props(ctx context.Context) map[string]int {
	var p struct {
		Settings struct {
			Context int `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	d.getJSON(ctx, "/props", &p)
	return ofAll(p.Settings.Context)
}

// info asks TGI or TEI.
func (d *device) info(ctx context.Context) map[string]int {
	var i struct {
		Total int `json:"max_total_tokens"`
		Input int `json:"max_input_length"`
	}
	d.getJSON(ctx, "/info", &i)
	return ofAll(cmp.Or(i.Total, i.Input))
}

// ofAll is the context of all models of a device.
func ofAll(tokens int) map[string]int {
	if !isContext(tokens) {
		return nil
	}
	return map[string]int{anyModel: tokens}
}

// maxContext bounds the length of a context.
const maxContext = 1 << 30

func isContext(tokens int) bool { return tokens > 0 && tokens <= maxContext }

// maxInfoBytes bounds what an engine says of itself.
const maxInfoBytes = 1 << 20

// getJSON reads what the device says, if it has the path and answers with JSON; into stays empty otherwise.
func (d *device) getJSON(ctx context.Context, path string, into any) {
	_, _ = d.get(ctx, path, func(body io.Reader) error { // not every engine has it
		raw, err := io.ReadAll(io.LimitReader(body, maxInfoBytes+1))
		if err != nil {
			return err
		}
		if len(raw) > maxInfoBytes {
			return fmt.Errorf("the answer is larger than %d bytes", maxInfoBytes)
		}
		return json.Unmarshal(raw, into)
	})
}
