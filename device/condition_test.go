package device_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
)

func TestConditions(t *testing.T) {
	now := time.Now()
	at := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	up := device.Device{At: at(1), ChangedAt: at(100)}
	open := device.Health{State: device.StateOpen, Why: "5 consecutive faults", Failing: "device d answered 500", Since: at(7)}
	half := open
	half.State = device.StateHalfOpen
	with := func(change func(*device.Device)) device.Device { d := up; change(&d); return d }
	for name, c := range map[string]struct {
		d    device.Device
		h    device.Health
		want device.Condition
	}{
		"up":      {up, device.Health{}, device.Condition{State: "up", Since: at(100)}},
		"pause":   {up, device.Health{ThrottledUntil: now.Add(20 * time.Second)}, device.Condition{State: "up", Reason: "it asked for a pause of 20s", Since: at(100)}},
		"failing": {up, device.Health{State: "closed", Failing: "it broke", Since: at(3)}, device.Condition{State: "failing", Reason: "it broke", Since: at(3)}},
		"open":    {up, open, device.Condition{State: "open", Reason: "5 consecutive faults; the last: device d answered 500", Since: at(7)}},
		"tested":  {up, half, device.Condition{State: "failing", Reason: "tested with one request at a time, after: 5 consecutive faults; the last: device d answered 500", Since: at(7)}},
		"drained": {with(func(d *device.Device) { d.Draining, d.Drained, d.DrainedAt = true, true, at(9) }), open,
			device.Condition{State: "draining", Reason: "an operator drained it", Since: at(9)}},
		"draining": {with(func(d *device.Device) { d.Draining = true }), open, device.Condition{State: "draining", Reason: "its heartbeat says so", Since: at(100)}},
		"down":     {with(func(d *device.Device) { d.Problem, d.Draining = "connection refused", true }), open, device.Condition{State: "down", Reason: "connection refused", Since: at(100)}},
	} {
		require.Equal(t, c.want, c.d.Condition(&c.h, now), name)
	}
	for name, d := range map[device.State]device.Device{
		"silent": with(func(d *device.Device) { d.Silent, d.Problem = true, "x" }), "unserved": with(func(d *device.Device) { d.Unserved = true }),
	} {
		c := d.Condition(&open, now)
		require.Equal(t, name, c.State)
		require.NotEmpty(t, c.Reason)
		require.Contains(t, device.States, c.State)
	}
}
