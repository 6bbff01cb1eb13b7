package device

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
)

// The names under which the router's policies are chosen: in the file, over HTTP
// and on the command line. They are here and not in the router because who lets
// people choose must know them, and knows no stage. The router has a policy for
// each, and a test that says so.
var policyNames = []string{
	"expected_finish", "fifo", "hash", "least_connections", "load_formula", "power_of_two", "prequal",
	"priority", "round_robin", "weighted_random", "weighted_round_robin",
}

// PolicyNames lists the policies, sorted.
func PolicyNames() []string { return slices.Clone(policyNames) }

// DefaultPolicy is what routers use when nobody says otherwise.
const DefaultPolicy = "expected_finish"

// Bindings lists when a task may be bound to a device; the first is the default.
var Bindings = []string{"auto", "late", "early"}

// LoadFigures lists the figures that the policy load_formula may weigh.
var LoadFigures = []string{"cpu", "mem", "io", "latency", "queue"}

// LoadPresets are the formulas that load_formula knows by name.
var LoadPresets = map[string]map[string]float64{
	"balanced": {"cpu": 0.6, "mem": 0.4, "latency": 0.2},
	"compute":  {"cpu": 0.5, "mem": 0.3, "io": 0.2},
	"edge":     {"cpu": 0.4, "mem": 0.3, "latency": 0.3},
}

// maxWeight bounds a weight: beyond it only the ratio of weights would suffer.
const maxWeight = 1e6

// PolicySetting is how routers choose devices: of the file, or set by an
// operator while they run, which goes over the file's.
type PolicySetting struct {
	Name    string             `json:"policy"`
	Binding string             `json:"binding,omitempty"` // empty: auto
	Weights map[string]float64 `json:"weights,omitempty"` // for load_formula; none: those of the file
	Preset  string             `json:"preset,omitempty"`  // for load_formula, a name in LoadPresets; not with weights

	// Of a setting that an operator made.
	By      string    `json:"by,omitempty"`
	At      time.Time `json:"at,omitzero"`
	Version int64     `json:"version,omitempty"` // counts the changes
}

// Validate returns the first thing that is wrong, as a *task.FieldError, or nil.
func (s *PolicySetting) Validate() error {
	if s.Name == "" {
		return &task.FieldError{Field: "policy", Problem: "it is missing", Remedy: "name one of " + strings.Join(policyNames, ", ")}
	}
	if !slices.Contains(policyNames, s.Name) {
		return &task.FieldError{Field: "policy", Problem: fmt.Sprintf("%q is not a policy", clipText(s.Name)), Remedy: "use one of " + strings.Join(policyNames, ", ")}
	}
	if s.Binding != "" && !slices.Contains(Bindings, s.Binding) {
		return &task.FieldError{Field: "binding", Problem: fmt.Sprintf("%q is not a binding", clipText(s.Binding)), Remedy: "use one of " + strings.Join(Bindings, ", ")}
	}
	if s.Name != "load_formula" {
		switch {
		case len(s.Weights) > 0:
			return &task.FieldError{Field: "weights", Problem: "only load_formula weighs figures", Remedy: "leave them out, or choose load_formula"}
		case s.Preset != "":
			return &task.FieldError{Field: "preset", Problem: "only load_formula has presets", Remedy: "leave it out, or choose load_formula"}
		}
		return nil
	}
	return s.checkFormula()
}

func (s *PolicySetting) checkFormula() error {
	if s.Preset != "" {
		if len(s.Weights) > 0 {
			return &task.FieldError{Field: "preset", Problem: "it cannot be together with weights", Remedy: "send one of them"}
		}
		if LoadPresets[s.Preset] == nil {
			return &task.FieldError{Field: "preset", Problem: fmt.Sprintf("%q is not a preset", clipText(s.Preset)), Remedy: "use one of " + strings.Join(slices.Sorted(maps.Keys(LoadPresets)), ", ")}
		}
	}
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		w := s.Weights[name]
		if !slices.Contains(LoadFigures, name) {
			return &task.FieldError{Field: "weights." + clipText(name), Problem: "there is no such figure", Remedy: "weigh " + strings.Join(LoadFigures, ", ")}
		}
		if math.IsNaN(w) || w < 0 || w > maxWeight {
			return &task.FieldError{Field: "weights." + name, Problem: fmt.Sprintf("%g is out of range", w), Remedy: "use 0 or more, such as 0.6"}
		}
		sum += w
	}
	if len(s.Weights) > 0 && sum == 0 {
		return &task.FieldError{Field: "weights", Problem: "all are 0", Remedy: "give at least one figure a weight"}
	}
	return nil
}

// Same reports whether routers do the same by both settings.
func (s *PolicySetting) Same(o *PolicySetting) bool {
	bind := func(b string) string {
		if b == "" {
			return Bindings[0]
		}
		return b
	}
	return s.Name == o.Name && bind(s.Binding) == bind(o.Binding) && s.Preset == o.Preset && maps.Equal(s.Weights, o.Weights)
}

// Texts are the weights as the configuration file has them: figures with their
// weights, or preset with its name.
func (s *PolicySetting) Texts() map[string]string {
	out := make(map[string]string, len(s.Weights)+1)
	for name, w := range s.Weights {
		out[name] = strconv.FormatFloat(w, 'g', -1, 64)
	}
	if s.Preset != "" {
		out["preset"] = s.Preset
	}
	return out
}

// NewPolicySetting reads a setting as the configuration file has it; weights are
// texts there, see [PolicySetting.Texts]. The error is a *task.FieldError.
func NewPolicySetting(name, binding string, weights map[string]string) (PolicySetting, error) {
	s := PolicySetting{Name: name, Binding: binding}
	for _, k := range slices.Sorted(maps.Keys(weights)) {
		if k == "preset" {
			s.Preset = weights[k]
			continue
		}
		w, err := strconv.ParseFloat(weights[k], 64)
		if err != nil {
			return s, &task.FieldError{Field: "weights." + clipText(k), Problem: fmt.Sprintf("%q is no number", clipText(weights[k])), Remedy: "use 0 or more, such as 0.6"}
		}
		if s.Weights == nil {
			s.Weights = make(map[string]float64, len(weights))
		}
		s.Weights[k] = w
	}
	if err := s.checkFormula(); err != nil {
		return s, err
	}
	if s.Name != "load_formula" { // they are in the file for when it is chosen
		s.Weights, s.Preset = nil, ""
	}
	return s, s.Validate()
}

// clipText shortens what somebody wrote before it goes into an error.
func clipText(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
