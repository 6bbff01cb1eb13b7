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

// The names of the router's policies, as used in the configuration file, the API and the
// CLI. They are defined here because those must know the names without importing the
// router. A test of the router checks that it implements every one of them.
var policyNames = []string{
	"expected_finish", "fifo", "hash", "least_connections", "load_formula", "power_of_two", "prequal",
	"priority", "round_robin", "weighted_random", "weighted_round_robin",
}

// PolicyNames returns the names of all policies, sorted.
func PolicyNames() []string { return slices.Clone(policyNames) }

// DefaultPolicy is the policy that routers use unless configured otherwise.
const DefaultPolicy = "expected_finish"

// Bindings lists the ways to choose when a task is bound to a device; the first is the
// default.
var Bindings = []string{"auto", "late", "early"}

// LoadFigures lists the figures that load_formula can weigh.
var LoadFigures = []string{"cpu", "mem", "io", "latency", "queue"}

// LoadPresets are the named formulas of load_formula.
var LoadPresets = map[string]map[string]float64{
	"balanced": {"cpu": 0.6, "mem": 0.4, "latency": 0.2},
	"compute":  {"cpu": 0.5, "mem": 0.3, "io": 0.2},
	"edge":     {"cpu": 0.4, "mem": 0.3, "latency": 0.3},
}

// maxWeight is the largest weight: beyond it, precision is lost and nothing is gained.
const maxWeight = 1e6

// PolicySetting determines how routers choose devices. It comes from the configuration
// file or from an operator at run time, who overrides the file.
type PolicySetting struct {
	Name    string             `json:"policy"`
	Binding string             `json:"binding,omitempty"` // empty: auto
	Weights map[string]float64 `json:"weights,omitempty"` // for load_formula; none: those of the file
	Preset  string             `json:"preset,omitempty"`  // for load_formula, a name in LoadPresets; not with weights

	// Set for settings made by an operator.
	By      string    `json:"by,omitempty"`
	At      time.Time `json:"at,omitzero"`
	Version int64     `json:"version,omitempty"` // counts the changes
}

// Validate returns the first problem as a *task.FieldError, or nil.
func (s *PolicySetting) Validate() error {
	if s.Name == "" {
		return &task.FieldError{Field: "policy", Problem: "it is missing", Remedy: "use one of " + strings.Join(policyNames, ", ")}
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
			return &task.FieldError{Field: "weights", Problem: "only load_formula uses weights", Remedy: "remove them, or choose load_formula"}
		case s.Preset != "":
			return &task.FieldError{Field: "preset", Problem: "only load_formula has presets", Remedy: "remove it, or choose load_formula"}
		}
		return nil
	}
	return s.checkFormula()
}

func (s *PolicySetting) checkFormula() error {
	if s.Preset != "" {
		if len(s.Weights) > 0 {
			return &task.FieldError{Field: "preset", Problem: "it conflicts with weights", Remedy: "set one or the other"}
		}
		if LoadPresets[s.Preset] == nil {
			return &task.FieldError{Field: "preset", Problem: fmt.Sprintf("%q is not a preset", clipText(s.Preset)), Remedy: "use one of " + strings.Join(slices.Sorted(maps.Keys(LoadPresets)), ", ")}
		}
	}
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		w := s.Weights[name]
		if !slices.Contains(LoadFigures, name) {
			return &task.FieldError{Field: "weights." + clipText(name), Problem: "unknown figure", Remedy: "use " + strings.Join(LoadFigures, ", ")}
		}
		if math.IsNaN(w) || w < 0 || w > maxWeight {
			return &task.FieldError{Field: "weights." + name, Problem: fmt.Sprintf("%g is out of range", w), Remedy: "use 0 or more, such as 0.6"}
		}
		sum += w
	}
	if len(s.Weights) > 0 && sum == 0 {
		return &task.FieldError{Field: "weights", Problem: "all weights are 0", Remedy: "give at least one figure a weight"}
	}
	return nil
}

// Same reports whether both settings make routers behave the same.
func (s *PolicySetting) Same(o *PolicySetting) bool {
	bind := func(b string) string {
		if b == "" {
			return Bindings[0]
		}
		return b
	}
	return s.Name == o.Name && bind(s.Binding) == bind(o.Binding) && s.Preset == o.Preset && maps.Equal(s.Weights, o.Weights)
}

// Texts returns the weights in the form used by the configuration file: each figure with
// its weight, or "preset" with its name.
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

// NewPolicySetting builds a setting from the configuration file's form, in which weights
// are strings (see [PolicySetting.Texts]). The error is a *task.FieldError.
func NewPolicySetting(name, binding string, weights map[string]string) (PolicySetting, error) {
	s := PolicySetting{Name: name, Binding: binding}
	for _, k := range slices.Sorted(maps.Keys(weights)) {
		if k == "preset" {
			s.Preset = weights[k]
			continue
		}
		w, err := strconv.ParseFloat(weights[k], 64)
		if err != nil {
			return s, &task.FieldError{Field: "weights." + clipText(k), Problem: fmt.Sprintf("%q is not a number", clipText(weights[k])), Remedy: "use 0 or more, such as 0.6"}
		}
		if s.Weights == nil {
			s.Weights = make(map[string]float64, len(weights))
		}
		s.Weights[k] = w
	}
	if err := s.checkFormula(); err != nil {
		return s, err
	}
	if s.Name != "load_formula" { // the file may keep weights for a policy that is not chosen
		s.Weights, s.Preset = nil, ""
	}
	return s, s.Validate()
}

// clipText shortens untrusted text for an error message.
func clipText(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
