package plain

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/device"
)

// knownFor is how long a device that serves a model is believed to do so without asking again.
const knownFor = 10 * time.Second

// models knows which models there are.
type models struct {
	registry Registry
	timeout  time.Duration
	last     atomic.Pointer[listing]
	asking   singleflight.Group
}

// listing is what the registry had at a time.
type listing struct {
	devices []device.Device
	at      time.Time
}

func (l *listing) serves(model string) bool {
	return l != nil && slices.ContainsFunc(l.devices, func(d device.Device) bool { return d.Serves(model) })
}

// list asks the registry. Requests that ask at the same time share one answer.
func (m *models) list(ctx context.Context) (*listing, error) {
	got := m.asking.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.timeout)
		defer cancel()
		devices, err := m.registry.List(ctx)
		if err != nil {
			return nil, err
		}
		l := &listing{devices, time.Now()}
		m.last.Store(l)
		return l, nil
	})
	select {
	case r := <-got:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*listing), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// check refuses a model that no known device serves, whether it answers at the moment or not. While Redis
// does not answer, every model is taken.
func (m *models) check(ctx context.Context, model string) error {
	if l := m.last.Load(); l.serves(model) && time.Since(l.at) < knownFor {
		return nil
	}
	l, err := m.list(ctx)
	if err != nil || l.serves(model) {
		return nil //nolint:nilerr // the task waits until a device serves the model, or its deadline
	}
	return unknownModel(model, l)
}

func unknownModel(model string, l *listing) error {
	message := fmt.Sprintf("no device serves the model `%s`", clip(model))
	if near := device.NearestModel(model, l.names()); near != "" {
		message += fmt.Sprintf("; did you mean `%s`?", near)
	} else {
		message += "; GET /v1/models lists those there are"
	}
	return envelope.New(http.StatusNotFound, "model", "model_not_found", message)
}

// names lists all names under which models can be asked for.
func (l *listing) names() []string {
	var out []string
	for i := range l.devices {
		out = append(out, l.devices[i].Models...)
		for alias := range l.devices[i].Aliases {
			out = append(out, alias)
		}
	}
	return out
}

// Model is one model that the fleet serves.
type Model struct {
	ID      string `json:"id" doc:"The name to ask for."`
	Object  string `json:"object" enum:"model"`
	Created int64  `json:"created" doc:"Unix seconds: since when a device serves it."`
	OwnedBy string `json:"owned_by" enum:"batchyard"`
}

// ModelList lists models.
type ModelList struct {
	Object string  `json:"object" enum:"list"`
	Data   []Model `json:"data"`
}

// live lists the models of devices that answer, by name.
func (l *listing) live() []Model {
	since := map[string]int64{}
	add := func(name string, d *device.Device) {
		if name == device.AnyModel {
			return
		}
		at, known := since[name]
		if joined := d.JoinedAt.Unix(); !known || joined < at {
			since[name] = joined
		}
	}
	for i := range l.devices {
		d := &l.devices[i]
		if d.Silent || d.Problem != "" {
			continue
		}
		for _, name := range d.Models {
			add(name, d)
		}
		for alias := range d.Aliases {
			add(alias, d)
		}
	}
	out := make([]Model, 0, len(since))
	for name, at := range since {
		out = append(out, Model{name, "model", at, "batchyard"})
	}
	slices.SortFunc(out, func(a, b Model) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// listModels answers GET /v1/models.
func (s *Server) listModels(w http.ResponseWriter, r *http.Request, _ Caller) Ended {
	l, err := s.models.list(r.Context())
	if err != nil {
		return refuse(w, s.noModels(err))
	}
	return send(w, ModelList{"list", l.live()})
}

// getModel answers GET /v1/models/{model}.
func (s *Server) getModel(w http.ResponseWriter, r *http.Request, _ Caller) Ended {
	l, err := s.models.list(r.Context())
	if err != nil {
		return refuse(w, s.noModels(err))
	}
	name, all := r.PathValue("model"), l.live()
	if i := slices.IndexFunc(all, func(m Model) bool { return m.ID == name }); i >= 0 {
		return send(w, all[i])
	}
	return refuse(w, unknownModel(name, l))
}

func (s *Server) noModels(err error) error {
	s.deps.Logger.Warn("reading the devices failed", "error", err)
	return envelope.Later(http.StatusServiceUnavailable, "unavailable", "Redis, which has the devices, does not answer; try again in a moment")
}

func send(w http.ResponseWriter, v any) Ended {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
	return Ended{}
}
