package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/device"
)

const (
	// unservedTimeout bounds the question for devices: without an answer, there is no warning.
	unservedTimeout = 3 * time.Second
	maxUnserved     = 5  // models that are warned of
	maxServed       = 10 // models that a warning names
)

// warnUnserved says which of the models of a file no device serves, and what is probably meant. The tasks are submitted all
// the same: such a device may join later.
func warnUnserved(ctx context.Context, c *cli.Env, s *server, models map[string]int) {
	ctx, cancel := context.WithTimeout(ctx, unservedTimeout)
	defer cancel()
	known, err := s.Devices(ctx)
	if err != nil || len(known.Devices) == 0 { // whatever follows reports it
		return
	}
	devices := make([]device.Device, len(known.Devices))
	var names []string
	for i, d := range known.Devices {
		devices[i] = device.Device{Models: d.Models, Aliases: d.Aliases}
		names = slices.Concat(names, d.Models, slices.Collect(maps.Keys(d.Aliases)))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	told := 0
	for _, model := range slices.Sorted(maps.Keys(models)) {
		if slices.ContainsFunc(devices, func(d device.Device) bool { return d.Serves(model) }) {
			continue
		}
		if told++; told > maxUnserved {
			return
		}
		_, _ = fmt.Fprintf(c.Err, "%s\n", cli.Plain(unserved(model, models[model], names)))
	}
}

// unserved is the warning about one model. names are those of the models that there are.
func unserved(model string, tasks int, names []string) string {
	ask := "ask"
	if tasks == 1 {
		ask = "asks"
	}
	text := fmt.Sprintf("no device serves %s, for which %s %s", model, cli.Counted(tasks, "task"), ask)
	switch n := len(names); {
	case n == 0:
		text += "; which models there are is known once a device answers"
	case n > maxServed:
		text += fmt.Sprintf("; there are %s and %d more", strings.Join(names[:maxServed], ", "), n-maxServed)
	default:
		text += "; there is " + strings.Join(names, ", ")
	}
	if near := device.NearestModel(model, names); near != "" {
		text += fmt.Sprintf("; did you mean %s? Ask for that, or give its device the option alias=%s=%s", near, model, near)
	}
	return text
}
