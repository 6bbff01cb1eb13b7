package agent

import (
	"context"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/mem"
)

// load is how busy the host is; each figure is 0 to 1.
type load struct{ cpu, mem, io float64 }

// host measures the machine that the agent runs on. Figures that the system does not
// provide stay 0. It keeps its own last counters, because those in gopsutil are shared by
// the whole process.
type host struct {
	at          time.Time
	busy, total float64           // CPU seconds
	disks       map[string]uint64 // ms each disk was busy
}

// sample returns the load since the last call; the first call returns no CPU and disk
// load.
func (h *host) sample(ctx context.Context) load {
	var l load
	now := time.Now()
	if times, err := cpu.TimesWithContext(ctx, false); err == nil && len(times) > 0 {
		t := times[0]
		// Guest time is included in user time.
		total := t.User + t.System + t.Nice + t.Irq + t.Softirq + t.Steal + t.Idle + t.Iowait
		busy := total - t.Idle - t.Iowait
		if !h.at.IsZero() {
			l.cpu = share(busy-h.busy, total-h.total)
		}
		h.busy, h.total = busy, total
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		l.mem = share(float64(m.Total)-float64(m.Available), float64(m.Total))
	}
	if counters, err := disk.IOCountersWithContext(ctx); err == nil {
		disks := make(map[string]uint64, len(counters))
		for name, c := range counters {
			if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
				continue // they are backed by a disk that is counted, or by none
			}
			disks[name] = c.IoTime
			if before, ok := h.disks[name]; ok && c.IoTime > before {
				l.io = max(l.io, share(float64(c.IoTime-before), float64(now.Sub(h.at).Milliseconds())))
			}
		}
		h.disks = disks
	}
	h.at = now
	return l
}

func share(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return min(max(part/whole, 0), 1)
}
