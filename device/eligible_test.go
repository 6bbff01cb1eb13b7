package device

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestEligible(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Device, *Health, *Requirement)
		gate   Gate
		want   Reason
	}{
		"nothing against it":           {want: CanRun},
		"another model":                {change: func(d *Device, _ *Health, _ *Requirement) { d.Models = []string{"x"} }, want: ModelNotServed},
		"every model":                  {change: func(d *Device, _ *Health, _ *Requirement) { d.Models = []string{AnyModel} }, want: CanRun},
		"a missing tag":                {change: func(_ *Device, _ *Health, want *Requirement) { want.Needs = []string{"gpu", "eu"} }, want: TagMissing},
		"silent":                       {change: func(d *Device, _ *Health, _ *Requirement) { d.Silent = true }, want: IsSilent},
		"draining":                     {change: func(d *Device, _ *Health, _ *Requirement) { d.Draining = true }, want: IsDraining},
		"down":                         {change: func(d *Device, _ *Health, _ *Requirement) { d.Problem = "connection refused" }, want: IsDown},
		"down, another model":          {change: func(d *Device, _ *Health, _ *Requirement) { d.Problem, d.Models = "x", []string{"n"} }, want: ModelNotServed},
		"down, models not known":       {change: func(d *Device, _ *Health, _ *Requirement) { d.Problem, d.Models = "x", nil }, want: IsDown},
		"shut":                         {gate: GateShut, want: BreakerIsOpen},
		"probed":                       {gate: GateProbe, want: CanRun},
		"open, but others matter more": {change: func(_ *Device, h *Health, _ *Requirement) { h.OpenUntil = noon.Add(time.Hour) }, gate: GateProbe, want: CanRun},
		"throttled":                    {change: func(_ *Device, h *Health, _ *Requirement) { h.ThrottledUntil = noon.Add(1) }, want: IsThrottled},
		"throttled until now":          {change: func(_ *Device, h *Health, _ *Requirement) { h.ThrottledUntil = noon }, want: CanRun},
		"failed there":                 {change: func(_ *Device, _ *Health, want *Requirement) { want.Exclude = []string{"b", "a"} }, want: ExcludedForTask},
		"refused it":                   {change: func(_ *Device, _ *Health, want *Requirement) { want.Declined = []string{"a"} }, want: DeclinedTask},
		"refuses all": {change: func(_ *Device, h *Health, _ *Requirement) {
			h.Declines = []Decline{{Endpoint: "e", Model: "m", Until: noon.Add(1)}}
		}, want: DeclinesModel},
		"refuses as large ones": {change: func(_ *Device, h *Health, _ *Requirement) {
			h.Declines = []Decline{{Endpoint: "e", Model: "m", MinSize: 2048, Until: noon.Add(1)}}
		}, want: DeclinesModel},
		"refuses larger ones": {change: func(_ *Device, h *Health, _ *Requirement) {
			h.Declines = []Decline{{Endpoint: "e", Model: "m", MinSize: 4096, Until: noon.Add(1)}}
		}, want: CanRun},
		"refuses others, and refused until now": {change: func(_ *Device, h *Health, _ *Requirement) {
			h.Declines = []Decline{{Endpoint: "f", Model: "m", Until: noon.Add(1)}, {Endpoint: "e", Model: "n", Until: noon.Add(1)}, {Endpoint: "e", Model: "m", Until: noon}}
		}, want: CanRun},
		"context too short": {change: func(d *Device, _ *Health, _ *Requirement) { d.Context = map[string]int{"m": 127} }, want: DeclinesModel},
		"context too short, by what it said": {change: func(d *Device, h *Health, _ *Requirement) {
			d.Context, h.Context = map[string]int{"m": 4096}, map[string]int{"m": 127}
		}, want: DeclinesModel},
		"context too short of a model with an alias": {change: func(d *Device, _ *Health, _ *Requirement) {
			d.Models, d.Aliases, d.Context = []string{"own"}, map[string]string{"m": "own"}, map[string]int{"own": 127}
		}, want: DeclinesModel},
		"context may do":         {change: func(d *Device, _ *Health, _ *Requirement) { d.Context = map[string]int{"m": 128, AnyModel: 1} }, want: CanRun},
		"context of another one": {change: func(d *Device, h *Health, _ *Requirement) { h.Context = map[string]int{"n": 1} }, want: CanRun},
		"all of it": {change: func(d *Device, h *Health, want *Requirement) {
			d.Silent, d.Draining, h.ThrottledUntil, want.Needs, want.Exclude = true, true, noon.Add(1), []string{"eu"}, []string{"a"}
		}, gate: GateShut, want: TagMissing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, h, want := &Device{ID: "a", Models: []string{"m"}, Tags: []string{"gpu"}}, &Health{}, &Requirement{Endpoint: "e", Model: "m", Size: 2048, Needs: []string{"gpu"}, Exclude: []string{"b"}}
			if c.change != nil {
				c.change(d, h, want)
			}
			require.Equal(t, c.want, Eligible(d, h, c.gate, want, noon))
		})
	}
}

func TestReasonNames(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"model", "tags", "declined", "declines", "silent", "down", "draining", "unserved", "breaker_open", "throttled", "excluded"}, ReasonNames())
	require.Empty(t, CanRun.String())
	for r := ModelNotServed; r < ReasonCount; r++ {
		require.Equal(t, ReasonNames()[r-1], r.String())
	}
}

func TestGates(t *testing.T) {
	t.Parallel()
	open := func(times int) *Health { return &Health{OpenUntil: noon.Add(time.Minute), Opened: times} }
	for name, c := range map[string]struct {
		healths []*Health
		want    []Gate
	}{
		"none":                  {nil, []Gate{}},
		"all closed":            {[]*Health{{}, {}}, []Gate{GateOpen, GateOpen}},
		"open until now":        {[]*Health{{OpenUntil: noon}, {}}, []Gate{GateOpen, GateOpen}},
		"one that is alone":     {[]*Health{open(1)}, []Gate{GateShut}},
		"one of two":            {[]*Health{open(1), {}}, []Gate{GateShut, GateOpen}},
		"two of two":            {[]*Health{open(1), open(2)}, []Gate{GateProbe, GateShut}},
		"three of five":         {[]*Health{open(3), open(1), {}, open(2), {}}, []Gate{GateShut, GateProbe, GateOpen, GateShut, GateOpen}},
		"the longer one":        {[]*Health{open(1), {OpenUntil: noon.Add(time.Hour), Opened: 1}}, []Gate{GateProbe, GateShut}},
		"equals in their order": {[]*Health{open(1), open(1), open(1), open(1)}, []Gate{GateShut, GateShut, GateProbe, GateProbe}},
	} {
		devices := make([]*Device, len(c.healths))
		for i := range devices {
			devices[i] = &Device{ID: fmt.Sprint(i)}
		}
		require.Equal(t, c.want, Gates(devices, c.healths, noon), name)
	}
	devices := []*Device{{Silent: true}, {Draining: true}, {}, {}}
	require.Equal(t, []Gate{GateOpen, GateOpen, GateShut, GateProbe}, Gates(devices, []*Health{open(9), open(9), open(2), open(1)}, noon), "silent and draining devices do not count")
}

// openedAt is the rule as routers applied it before Gates, to compare with.
func ejected(devices []*Device, healths []*Health, now time.Time) (out, probe map[int]bool) {
	var failing []int
	alive := 0
	for i, d := range devices {
		if d.Silent || d.Draining {
			continue
		}
		alive++
		if healths[i].OpenUntil.After(now) {
			failing = append(failing, i)
		}
	}
	slices.SortStableFunc(failing, func(a, b int) int {
		return cmp.Or(cmp.Compare(healths[b].Opened, healths[a].Opened), healths[b].OpenUntil.Compare(healths[a].OpenUntil))
	})
	out, probe = map[int]bool{}, map[int]bool{}
	for rank, i := range failing {
		out[i] = rank < max(1, alive/2)
		probe[i] = !out[i]
	}
	return out, probe
}

// Invariants: at most half of the live devices are shut, never all of several, only open
// breakers matter, and a shut one never opened less often than a probed one.
func TestGatesInvariants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "devices")
		devices, healths := make([]*Device, n), make([]*Health, n)
		for i := range n {
			devices[i] = &Device{ID: fmt.Sprint(i), Silent: rapid.IntRange(0, 4).Draw(t, "silent") == 0, Draining: rapid.IntRange(0, 4).Draw(t, "draining") == 0}
			healths[i] = &Health{Opened: rapid.IntRange(0, 3).Draw(t, "opened")}
			if rapid.Bool().Draw(t, "open") {
				healths[i].OpenUntil = noon.Add(time.Duration(rapid.IntRange(-2, 3).Draw(t, "until")) * time.Second)
			}
		}
		gates := Gates(devices, healths, noon)
		require.Len(t, gates, n)
		out, probe := ejected(devices, healths, noon)
		alive, shut, least, most := 0, 0, 4, -1
		for i, g := range gates {
			require.Equal(t, out[i], g == GateShut)
			require.Equal(t, probe[i], g == GateProbe)
			live := !devices[i].Silent && !devices[i].Draining
			if live {
				alive++
			}
			require.Equal(t, live && healths[i].OpenUntil.After(noon), g != GateOpen)
			switch g {
			case GateShut:
				shut++
				least = min(least, healths[i].Opened)
			case GateProbe:
				most = max(most, healths[i].Opened)
			case GateOpen:
			}
		}
		require.LessOrEqual(t, shut, max(1, alive/2))
		require.True(t, alive < 2 || shut < alive, "never all")
		require.LessOrEqual(t, most, least)
	})
}

func TestEachReasonOfADeviceIsTranslated(t *testing.T) {
	for why := range Reason(ReasonCount) {
		reason := why.Waiting()
		require.NotEmpty(t, reason, "%s", why)
		require.NotEmpty(t, reason.Explain().Means, "%s", why)
		require.NotEmpty(t, reason.Explain().Remedy, "%s", why)
	}
}
