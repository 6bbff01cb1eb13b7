package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

func devicesCommand(c *cli.Env) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the devices with their last heartbeats",
		Example: "  batchyard devices list\n  batchyard devices list --json | jq 'select(.silent)'",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return devicesList(cmd.Context(), c) },
	}
	c.ServerFlag(list)
	c.JSONFlag(list)
	drain := &cobra.Command{
		Use: "drain ID…", Short: "Give devices no new work until they are undrained",
		Long: `Gives devices no new work, whatever their heartbeats say. Tasks that wait for them
go elsewhere; running tasks finish there. It lasts until "devices undrain", even if a
device leaves and returns.`,
		Example: "  batchyard devices drain gpu-1",
		Args:    cli.AtLeastOne("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return devicesDrain(cmd.Context(), c, args, "drained", (*server).Drain)
		},
	}
	undrain := &cobra.Command{
		Use: "undrain ID…", Short: "Give devices work again",
		Example: "  batchyard devices undrain gpu-1",
		Args:    cli.AtLeastOne("ID"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return devicesDrain(cmd.Context(), c, args, "undrained", (*server).Undrain)
		},
	}
	for _, cmd := range []*cobra.Command{drain, undrain} {
		c.ClientFlags(cmd)
		c.JSONFlag(cmd)
	}
	return cli.Group(&cobra.Command{
		Use: "devices", Short: "Show devices, or stop giving them work", Example: "  batchyard devices list\n  batchyard devices drain gpu-1",
	}, list, drain, undrain)
}

// devicesDrain drains or undrains devices. An unknown device does not hold up the
// next.
func devicesDrain(ctx context.Context, c *cli.Env, ids []string, done string, set func(*server, context.Context, string) (*batchyard.DrainState, error)) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		out, err := set(server, ctx, id)
		switch {
		case refused(err):
			errs = append(errs, cli.WithCode(cli.CodeOf(err), fmt.Errorf("device %s: %w", id, err)))
			continue
		case err != nil:
			return errors.Join(append(errs, fmt.Errorf("device %s: %w", id, err))...) // the others would fail the same way
		}
		if c.JSON {
			if err := c.PrintJSON(out.RawJSON()); err != nil {
				return err
			}
			continue
		}
		note := ""
		if !out.Changed {
			note = ", no change"
		}
		c.Printf("device %s: %s%s\n", cli.Plain(id), done, note)
	}
	return errors.Join(errs...)
}

func devicesList(ctx context.Context, c *cli.Env) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	known, err := server.Devices(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		for i := range known.Devices {
			if err := c.PrintJSON(known.Devices[i].RawJSON()); err != nil {
				return err
			}
		}
		return nil
	}
	for _, d := range known.Absent {
		_, _ = fmt.Fprintf(c.Err, "device %s was drained %s, and is unknown now\n", cli.Plain(d.DeviceID), cli.Ago(d.DrainedAt, c.Now()))
	}
	if len(known.Devices) == 0 {
		_, _ = fmt.Fprintln(c.Err, "there are no devices; start `batchyard agent` beside each")
		return nil
	}
	return showDevices(c, known.Devices)
}

func showDevices(c *cli.Env, devices []batchyard.Device) error {
	slices.SortFunc(devices, func(a, b batchyard.Device) int { return strings.Compare(a.DeviceID, b.DeviceID) })
	t := cli.NewTable(c.Out, "ID", "STATE", "SINCE", "SLOTS", "RUNNING", "DONE", "FAILED", "MEAN", "TOKENS/S", "IN FLIGHT", "QUEUE", "CPU", "MEM", "IO", "LATENCY", "SEEN", "MODELS", "TAGS", "URL", "NOTES")
	now := c.Now()
	for _, d := range devices {
		since := ""
		if d.Since != nil {
			since = cli.Ago(*d.Since, now)
		}
		q := &d.Requests
		slots := strconv.Itoa(d.Slots)
		if d.Concurrency > 0 && d.Concurrency < d.Slots {
			slots = fmt.Sprintf("%d of %d", d.Concurrency, d.Slots)
		}
		t.Row(d.DeviceID, d.State, since, slots, strconv.Itoa(q.Running), strconv.FormatInt(q.Completed, 10), percent(q.FailureRate),
			figure(q.MeanMS, "ms"), figure(q.TokensPerSecond, ""),
			count(d.InFlight), count(d.Queue), load(&d, d.CPU), load(&d, d.Mem), load(&d, d.IO),
			strconv.FormatFloat(d.LatencyMS, 'f', 1, 64)+"ms", cli.Ago(d.SeenAt, now),
			cli.Short(strings.Join(d.Models, ","), 60), cli.Short(strings.Join(d.Tags, ","), 40), d.URL, strings.Join(notes(&d, now), "; "))
	}
	return t.Flush()
}

// maxNotes bounds what the table says about what workers learned of a device; --json has all of it.
const maxNotes = 4

// notes say why a device is in its state, and what workers learned of it that keeps requests from it.
func notes(d *batchyard.Device, now time.Time) (out []string) {
	in := func(at time.Time) string { return max(time.Second, at.Sub(now).Round(time.Second)).String() }
	if d.Reason != "" {
		out = append(out, cli.Short(d.Reason, 200))
	}
	if d.PausedUntil != nil && d.State != "up" {
		out = append(out, "asked for a pause of "+in(*d.PausedUntil))
	}
	for _, r := range d.Declines {
		what := r.Endpoint
		if r.MinSize > 0 {
			what = fmt.Sprintf("%d KiB or more to %s", r.MinSize>>10, r.Endpoint)
		}
		out = append(out, fmt.Sprintf("refuses %s for %s (%d, %s), tried again in %s", what, r.Model, r.Status, r.Why, in(r.Until)))
	}
	if text := contexts(d.Context); text != "" {
		out = append(out, text)
	}
	if len(d.Loaded) > 0 {
		out = append(out, "loaded: "+cli.Short(strings.Join(d.Loaded, ", "), 100))
	}
	for _, model := range slices.Sorted(maps.Keys(d.MaxBatch)) {
		out = append(out, fmt.Sprintf("takes %d items of %s at once", d.MaxBatch[model], model))
	}
	if n := len(out) - maxNotes; n > 0 {
		out = append(out[:maxNotes], fmt.Sprintf("%d more", n))
	}
	return out
}

// contexts says how many tokens the device takes at once.
func contexts(by map[string]int) string {
	alike := map[int]bool{}
	var each []string
	for _, model := range slices.Sorted(maps.Keys(by)) {
		alike[by[model]] = true
		each = append(each, fmt.Sprintf("%d (%s)", by[model], cli.Short(model, 40)))
	}
	switch {
	case len(alike) == 0:
		return ""
	case len(alike) == 1:
		return fmt.Sprintf("context of %d tokens", slices.Collect(maps.Keys(alike))[0])
	}
	return "context of " + cli.Short(strings.Join(each, ", "), 100) + " tokens"
}

// figure prints a figure that is 0 while it is unknown.
func figure(v float64, unit string) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + unit
}

// count prints a number, or nothing if it is unknown.
func count(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}

// load shows a load of the device's machine; its memory is never quite empty, if it is known.
func load(d *batchyard.Device, share float64) string {
	if d.Mem == 0 {
		return "-"
	}
	return percent(share)
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 0, 64) + "%" }
