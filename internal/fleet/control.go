package fleet

import (
	"encoding/json"
	"net/http"
)

// Controls serves what devices play, for demos and for other people's tests:
//
//	GET    /                 the devices, what they play, and what they were asked
//	GET    /plays            everything that a device can play
//	PUT    /DEVICE/PLAY      the device plays, from the next request on
//	DELETE /DEVICE           it answers well again
func (f *Fleet) Controls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		out := make([]deviceState, 0, len(f.devices))
		for _, d := range f.devices {
			st := d.Stats()
			out = append(out, deviceState{d.ID(), d.URL(), d.Playing(), st.Requests, st.Items, st.Succeeded, st.Errors, st.Cancelled, st.InFlight})
		}
		writeState(w, out)
	})
	mux.HandleFunc("GET /plays", func(w http.ResponseWriter, _ *http.Request) {
		var out []playState
		for _, p := range Plays() {
			out = append(out, playState{p.Name, p.Says})
		}
		writeState(w, out)
	})
	mux.HandleFunc("PUT /{device}/{play...}", func(w http.ResponseWriter, r *http.Request) {
		p, err := FindPlay(r.PathValue("play"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.command(w, r, p)
	})
	mux.HandleFunc("DELETE /{device}", func(w http.ResponseWriter, r *http.Request) { f.command(w, r, Play{}) })
	return mux
}

func (f *Fleet) command(w http.ResponseWriter, r *http.Request, p Play) {
	d := f.Device(r.PathValue("device"))
	if d == nil {
		http.Error(w, "there is no such simulated device", http.StatusNotFound)
		return
	}
	if err := d.Play(p); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// deviceState is a device as Controls shows it.
type deviceState struct {
	ID        string `json:"device_id"`
	URL       string `json:"url"`
	Play      string `json:"play,omitempty"`
	Requests  int64  `json:"requests"`
	Items     int64  `json:"items"`
	Succeeded int64  `json:"succeeded"`
	Errors    int64  `json:"errors"`
	Cancelled int64  `json:"cancelled"`
	InFlight  int    `json:"in_flight"`
}

type playState struct {
	Name string `json:"name"`
	Says string `json:"says"`
}

func writeState(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // cannot happen: there are only strings and numbers
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, http.StatusOK, jsonType, append(b, '\n'))
}
