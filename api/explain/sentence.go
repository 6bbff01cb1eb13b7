package explain

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// sentence puts the figures into words.
func sentence(w *Why, st *Task, now time.Time) string {
	text := story(w, st, now)
	if w.Place != nil {
		text += w.Place.sentence(now)
	}
	return text
}

// story says what the task waits for, or where it went.
func story(w *Why, st *Task, now time.Time) string {
	switch {
	case w.Waiting != nil:
		text := waits(w.Waiting, now)
		if n := len(w.Attempts); n > 0 {
			text += ". Before: " + went(&w.Attempts[n-1])
		}
		return text + "."
	case len(w.Attempts) == 0 && !st.State.Terminal():
		return fmt.Sprintf("The task is %s; where it went has not been recorded yet.", st.State)
	case len(w.Attempts) == 0:
		return fmt.Sprintf("The task ended as %s before it was assigned to a device%s.", st.State, because(st.Error))
	}
	last := &w.Attempts[len(w.Attempts)-1]
	var b strings.Builder
	switch st.State {
	case task.Assigned:
		b.WriteString("It waits at " + last.DeviceID + ". ")
	case task.Running:
		b.WriteString("It runs on " + last.DeviceID + ". ")
	case task.Success:
		b.WriteString("It ran on " + cmp.Or(st.DeviceID, last.DeviceID) + ". ")
	default:
		b.WriteString(fmt.Sprintf("It ended as %s%s. ", st.State, because(st.Error)))
	}
	for i := range w.Attempts {
		if n := len(w.Attempts); n > maxPlacements && i >= maxPlacements-1 && i < n-1 {
			if i == maxPlacements-1 {
				fmt.Fprintf(&b, "… %d more. ", n-maxPlacements)
			}
			continue
		}
		b.WriteString(capital(went(&w.Attempts[i])) + ". ")
	}
	return strings.TrimSpace(b.String())
}

// maxPlacements bounds the attempts that a sentence describes one by one.
const maxPlacements = 8

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func because(e *task.Error) string {
	if e == nil || e.Message == "" {
		return ""
	}
	return ": " + e.Message
}

// went describes one placement.
func went(p *Placement) string {
	var b strings.Builder
	fmt.Fprintf(&b, "attempt %d went to %s", p.Attempt, p.DeviceID)
	if p.Policy != "" {
		fmt.Fprintf(&b, " by %s", p.Policy)
	}
	if p.Of > 0 {
		fmt.Fprintf(&b, ", out of %s that could run it", count(p.Of, "device"))
	}
	if p.Why != "" {
		b.WriteString(", because " + strings.TrimSuffix(p.Why, "."))
	}
	if len(p.Candidates) > 0 && p.Candidates[0].Score != nil {
		c := p.Candidates[0]
		fmt.Fprintf(&b, " (%s", figure(*c.Score, c.Unit))
		for _, o := range p.Candidates[1:] {
			if o.Score != nil {
				fmt.Fprintf(&b, ", %s %s", o.DeviceID, figure(*o.Score, o.Unit))
				if o.Limit > 0 && o.Used >= o.Limit {
					b.WriteString(" but full")
				}
			}
		}
		b.WriteString(")")
	}
	if out := outs(p.Out); out != "" {
		b.WriteString("; of the others " + out)
	}
	switch {
	case p.Outcome == task.OutcomeOK:
		fmt.Fprintf(&b, "; it was answered after %s", figure(p.DurationMS, "ms"))
	case p.Outcome != "":
		fmt.Fprintf(&b, "; it failed after %s (%s)", figure(p.DurationMS, "ms"), cmp.Or(string(p.Class), "no class"))
	}
	return b.String()
}

// figure writes a number with its unit.
func figure(v float64, unit string) string {
	text := strconv.FormatFloat(v, 'f', 2, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	if unit == "" {
		return text
	}
	return text + " " + unit
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// waits describes what a task waits for, the main reason first.
func waits(w *Waiting, now time.Time) string {
	var parts []string
	if w.NotBefore != nil && w.NotBefore.After(now) {
		parts = append(parts, "it may not run before "+w.NotBefore.Format(time.RFC3339))
	}
	if !w.Read {
		parts = append(parts, "no router has read it yet: it may be behind others in Kafka")
	} else if w.Aside {
		parts = append(parts, "a router has read it and set it aside, because there is no room for it now")
	}
	switch {
	case w.Devices == 0:
		parts = append(parts, "no device is known")
	case w.Able == 0:
		text := fmt.Sprintf("none of the %s can run it: %s", count(w.Devices, "device"), outs(w.Out))
		if len(w.Models) > 0 {
			text += fmt.Sprintf(" %s, but %s", w.Model, strings.Join(w.Models, ", "))
		}
		if w.Nearest != "" {
			text += fmt.Sprintf(" (did you mean %s?)", w.Nearest)
		}
		parts = append(parts, text)
	default:
		text := fmt.Sprintf("%d of %s could run it", w.Able, count(w.Devices, "device"))
		load := fmt.Sprintf("%s for %s", count(w.Used, "task"), count(w.Slots, "slot"))
		free := !w.Batched && w.Used < w.Slots
		have, are := "have", "are"
		if w.Able == 1 {
			have, are = "has", "is"
		}
		switch {
		case w.Batched: // only the router knows how many a slot takes
			text += " and " + have + " " + load + ", each of which takes many at once"
		case free:
			text += " and " + have + " " + load
		default:
			text += " and " + are + " busy, with " + load
		}
		if out := outs(w.Out); out != "" {
			text += "; of the others " + out
		}
		parts = append(parts, text)
		if free && len(parts) == 1 {
			parts = append(parts, "others are ahead of it, or a faster device is worth the wait")
		}
	}
	text := fmt.Sprintf("It waits, with priority %s and level %d", w.Priority, w.Level)
	if w.Since != nil {
		text += fmt.Sprintf(", for %s", max(0, now.Sub(*w.Since)).Round(100*time.Millisecond))
	}
	text += ": " + strings.Join(parts, "; ")
	if w.ParkedAt != nil {
		text += fmt.Sprintf(". A router parked it at %s (%s), and it waits there", w.ParkedAt.Format(time.RFC3339), cmp.Or(w.Parked, "no reason given"))
	}
	if w.Deadline != nil {
		text += ". Its deadline is " + w.Deadline.Format(time.RFC3339)
		if w.Deadline.Before(now) {
			text += ", which has passed: it is about to end as EXPIRED"
		}
	}
	return text
}

// Cause names the reason in the explanation. It stays the same while only figures change, so that
// it can be shown once.
func (w *Why) Cause() string {
	n := w.Waiting
	switch {
	case n == nil && len(w.Attempts) == 0:
		return "unknown"
	case n == nil:
		return string(w.State) + " on " + w.Attempts[len(w.Attempts)-1].DeviceID
	case !n.Read:
		return "unread"
	case n.Devices == 0:
		return "no_device"
	case n.Able > 0:
		return "busy " + n.Model
	}
	parts := []string{"unable", n.Model}
	for _, why := range device.ReasonNames() {
		if n.Out[why] > 0 {
			parts = append(parts, why)
		}
	}
	return strings.Join(parts, " ")
}

// Lines has a line for each device, if none of them can run the task.
func (w *Why) Lines() (lines []string) {
	if w.Waiting == nil || w.Waiting.Able > 0 {
		return nil
	}
	for i := range w.Waiting.Fleet {
		lines = append(lines, w.Waiting.Fleet[i].Line)
	}
	return lines
}

// reasonTexts explains each reason, for one device and for several; the number goes in
// front.
var reasonTexts = map[string][2]string{
	"model":        {"does not serve its model", "do not serve its model"},
	"tags":         {"lacks tags that it needs", "lack tags that it needs"},
	"declined":     {"has refused it", "have refused it"},
	"declines":     {"refuses all requests for its model", "refuse all requests for its model"},
	"silent":       {"has missed its heartbeats", "have missed their heartbeats"},
	"down":         {"does not answer", "do not answer"},
	"draining":     {"is draining", "are draining"},
	"unserved":     {"is served by no batcher or no worker", "are served by no batcher or no worker"},
	"breaker_open": {"has an open circuit breaker because it failed", "have open circuit breakers because they failed"},
	"throttled":    {"has asked for a pause", "have asked for a pause"},
	"excluded":     {"has failed it before", "have failed it before"},
	"full":         {"had no free credit", "had no free credit"},
}

// outs says how many devices are out for which reason.
func outs(out map[string]int) string {
	var parts []string
	for _, why := range append(device.ReasonNames(), "full") {
		if n := out[why]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, reasonTexts[why][min(n, 2)-1]))
		}
	}
	if len(parts) > 1 {
		parts = append(parts[:len(parts)-2], parts[len(parts)-2]+" and "+parts[len(parts)-1])
	}
	return strings.Join(parts, ", ")
}
