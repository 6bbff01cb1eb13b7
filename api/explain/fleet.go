package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
)

// maxFleet bounds the devices that an explanation names one by one.
const maxFleet = 20

// FleetDevice is a device, and why it can't run the task.
type FleetDevice struct {
	DeviceID string   `json:"device_id"`
	State    string   `json:"state" enum:"silent,down,draining,unserved,open,failing,up"`
	Out      string   `json:"out,omitempty" doc:"Why it can't run the task, as in out of the figures; missing: it could."`
	Models   []string `json:"models,omitempty" doc:"Its models, at most ten."`
	Tags     []string `json:"tags,omitempty"`
	Line     string   `json:"line" doc:"The same in words."`

	reason device.Reason
}

// verdict is a device with what was found out about it.
type verdict struct {
	*device.Device
	health *device.Health
	reason device.Reason
}

// named returns the devices of an explanation, those first that could run the task, or have least wrong with them.
func named(all []verdict, want *device.Requirement, now time.Time) []FleetDevice {
	out := make([]FleetDevice, 0, len(all))
	for _, v := range all {
		how := v.Condition(v.health, now)
		f := FleetDevice{DeviceID: v.ID, State: string(how.State), Out: v.reason.String(), Models: modelsOf(v.Device), Tags: v.Tags, reason: v.reason}
		f.Line = lineOf(&f, how, want)
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b FleetDevice) int {
		if a.reason == device.CanRun || b.reason == device.CanRun {
			return cmp.Compare(a.reason, b.reason)
		}
		return cmp.Compare(b.reason, a.reason)
	})
	return out[:min(len(out), maxFleet)]
}

// lineOf describes a device in one line.
func lineOf(f *FleetDevice, how device.Condition, want *device.Requirement) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) ", f.DeviceID, f.State)
	switch f.reason {
	case device.CanRun:
		b.WriteString("could run it")
	case device.ModelNotServed:
		fmt.Fprintf(&b, "does not serve %s", want.Model)
	case device.TagMissing:
		fmt.Fprintf(&b, "lacks tags of %s", strings.Join(want.Needs, ", "))
	case device.IsThrottled:
		b.WriteString("gets no requests")
	default:
		b.WriteString(reasonTexts[f.Out][0])
	}
	if how.Reason != "" {
		b.WriteString(": " + how.Reason)
	}
	models := strings.Join(f.Models, ", ")
	if models == "" {
		models = "not known"
	}
	b.WriteString("; models " + models)
	if len(f.Tags) > 0 {
		b.WriteString("; tags " + strings.Join(f.Tags, ", "))
	}
	return b.String()
}

// maxModels bounds the models that an explanation names.
const maxModels = 10

// modelsOf returns the models that the devices serve, and their aliases, sorted.
func modelsOf(ds ...*device.Device) []string {
	out := namesOf(ds)
	return out[:min(len(out), maxModels)]
}

func namesOf(ds []*device.Device) []string {
	var out []string
	for _, d := range ds {
		out = append(out, d.Models...)
		for alias := range d.Aliases {
			out = append(out, alias)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
