package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/api"
)

func (c *cli) devicesCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the devices and what their last heartbeat said",
		Example: "  batchyard devices list\n  batchyard devices list --json | jq 'select(.silent)'",
		Args:    exactly(), ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.devicesList(cmd.Context()) },
	}
	c.serverFlag(list)
	c.jsonFlag(list)
	return group(&cobra.Command{Use: "devices", Short: "Look at devices", Example: "  batchyard devices list"}, list)
}

func (c *cli) devicesList(ctx context.Context) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	var answer struct {
		Devices []json.RawMessage `json:"devices"`
	}
	if err := server.get(ctx, "/v1/devices", nil, 0, &answer); err != nil {
		return err
	}
	devices := make([]api.DeviceStatus, len(answer.Devices))
	for i, raw := range answer.Devices {
		if c.json {
			if err := c.printJSON(raw); err != nil {
				return err
			}
			continue
		}
		if err := json.Unmarshal(raw, &devices[i]); err != nil {
			return fmt.Errorf("reading a device that the server listed: %w", err)
		}
	}
	if c.json {
		return nil
	}
	if len(devices) == 0 {
		_, _ = fmt.Fprintln(c.err, "no device is known; start `batchyard agent` beside each")
		return nil
	}
	return c.showDevices(devices)
}

func (c *cli) showDevices(devices []api.DeviceStatus) error {
	slices.SortFunc(devices, func(a, b api.DeviceStatus) int { return strings.Compare(a.ID, b.ID) })
	t := newTable(c.out, "ID", "STATE", "SLOTS", "IN FLIGHT", "QUEUE", "CPU", "MEM", "IO", "LATENCY", "SEEN", "MODELS", "TAGS", "URL")
	now := c.now()
	for _, d := range devices {
		state := "up"
		switch {
		case d.Silent:
			state = "silent"
		case d.Draining:
			state = "draining"
		}
		t.row(d.ID, state, strconv.Itoa(d.Slots), count(d.InFlight), count(d.Queue), percent(d.CPU), percent(d.Mem), percent(d.IO),
			strconv.FormatFloat(d.LatencyMS, 'f', 1, 64)+"ms", ago(d.SeenAt, now),
			short(strings.Join(d.Models, ","), 60), short(strings.Join(d.Tags, ","), 40), d.URL)
	}
	return t.flush()
}

// count is a number, or nothing when it is not known.
func count(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 0, 64) + "%" }
