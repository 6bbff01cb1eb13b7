package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// maxLoadedBytes bounds Ollama's list of loaded models.
const maxLoadedBytes = 1 << 20

// ollama asks Ollama for the models that it has in memory. It reports no load, except that nothing runs while no model is
// loaded. Other engines do not have the path, and are asked again after a while.
func (d *device) ollama(ctx context.Context) figures {
	if d.noOllama && time.Since(d.ollamaAt) < lookAgain {
		return figures{}
	}
	var list struct {
		Models []struct {
			Name    string
			Context int `json:"context_length"`
		}
	}
	status, err := d.get(ctx, "/api/ps", func(body io.Reader) error {
		raw, err := io.ReadAll(io.LimitReader(body, maxLoadedBytes+1))
		if err != nil {
			return err
		}
		if len(raw) > maxLoadedBytes {
			return fmt.Errorf("the list is larger than %d bytes", maxLoadedBytes)
		}
		return json.Unmarshal(raw, &list)
	})
	d.ollamaAt = time.Now()
	d.noOllama = err != nil || status >= 300 || list.Models == nil
	if d.noOllama {
		return figures{}
	}
	var f figures
	for _, m := range list.Models {
		if name := m.Name; name != "" && len(name) <= maxNameBytes && len(f.loaded) < maxLoaded {
			f.loaded = append(f.loaded, name)
			if isContext(m.Context) {
				if f.context == nil {
					f.context = map[string]int{}
				}
				f.context[name] = m.Context
			}
		}
	}
	if len(f.loaded) == 0 {
		f.running = new(int)
	}
	return f
}

// maxLoaded bounds the loaded models in a heartbeat.
const maxLoaded = 64
