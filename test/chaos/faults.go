package chaos

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Shopify/toxiproxy/v2/toxics"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/chaos/services"
)

// runPlan carries out a plan. It returns when the time is over and every fault has
// been healed.
func (w *world) runPlan(ctx context.Context, plan []Fault, length time.Duration) {
	var wg sync.WaitGroup
	over, cancel := context.WithDeadline(ctx, w.begin.Add(length))
	defer cancel()
	for _, f := range plan {
		select {
		case <-time.After(time.Until(w.begin.Add(f.At))):
		case <-over.Done():
		}
		if over.Err() != nil {
			break
		}
		w.say("%s", f.what())
		wg.Go(func() {
			// A fault is always healed, even when the time is over.
			began := time.Now()
			if err := w.apply(ctx, over, f); err != nil {
				w.say("%s of %s: %v", f.Kind, f.Target, err)
			}
			if late := time.Since(began) - min(f.For, length-f.At); late > 10*time.Second {
				w.say("%s of %s: healing took %.0f s", f.Kind, f.Target, late.Seconds())
			}
		})
	}
	<-over.Done()
	wg.Wait()
}

// wait waits for the duration of a fault, or until the chaos is over.
func (f Fault) wait(over context.Context) {
	select {
	case <-time.After(f.For):
	case <-over.Done():
	}
}

func (w *world) apply(ctx, over context.Context, f Fault) error {
	// On a slow machine a service may not have recovered from the previous fault yet.
	held, _ := w.busy.LoadOrStore(f.Target, new(sync.Mutex))
	mu, ok := held.(*sync.Mutex)
	if !ok || !mu.TryLock() {
		w.say("skipped: %s of %s, which has not recovered from the last fault", f.Kind, f.Target)
		w.leftOut.Add(1)
		return nil
	}
	defer mu.Unlock()
	defer w.lacking.add(lackedBy(f)...)()
	switch f.Kind {
	case Absent:
		return w.beAbsent(over, f)
	case Crowd:
		return w.crowd(over, f)
	case RecordsDeleted:
		return w.deleteRecords(ctx, over, f)
	case TopicGrown:
		return w.grow(ctx, f)
	case KafkaSlow:
		return w.slowKafka(over, f)
	case PostgresSlow:
		return w.slowPostgres(ctx, over, f)
	case Kill, Pause, Term, Third:
		return w.signalProcess(over, f)
	case RedisFlush:
		return w.rdb.FlushAll(ctx).Err()
	case RedisRestart:
		return restart(ctx, over, f, w.redis, w.redis.Kill)
	case PostgresFast:
		return restart(ctx, over, f, w.postgres, w.postgres.Stop)
	case PostgresCrash:
		return restart(ctx, over, f, w.postgres, w.postgres.Crash)
	case KafkaKill:
		return restart(ctx, over, f, w.kafka, w.kafka.Kill)
	case KafkaClean:
		return restart(ctx, over, f, w.kafka, w.kafka.Stop)
	case TopicRecreated:
		return w.recreate(ctx, over)
	case BrokerKill, MasterKill, PrimaryKill, PrimaryLoses:
		return w.applyToCluster(ctx, over, f)
	case PostgresReadOnly:
		return w.reset(ctx, over, f, "default_transaction_read_only", "on", "off")
	case PostgresTimeout:
		return w.reset(ctx, over, f, "statement_timeout", fmt.Sprintf("'%dms'", f.number("timeout")), "0")
	case PostgresFull:
		if !w.disk.Mounted {
			w.say("skipped: %s of %s: %s", f.Kind, f.Target, w.disk.Why)
			w.leftOut.Add(1)
			return nil
		}
		err := w.disk.Fill()
		f.wait(over)
		if e := w.disk.Empty(); e != nil {
			return e
		}
		return err
	case Latency, Bandwidth, Reset, BlackHole, CutTo, CutFrom, Slicer:
		return w.spoil(over, f)
	case DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles:
		return w.breakDevice(over, f)
	}
	return fmt.Errorf("unknown fault %s", f.Kind)
}

// signalProcess kills, terminates or pauses a process.
func (w *world) signalProcess(over context.Context, f Fault) error {
	if f.Kind == Third {
		return w.runThird(over, f)
	}
	p := w.process(f.Target)
	p.Op.Lock()
	defer p.Op.Unlock()
	switch f.Kind {
	case Kill:
		p.End(syscall.SIGKILL, 10*time.Second)
	case Term:
		code, hung := p.End(syscall.SIGTERM, 30*time.Second)
		switch {
		case hung:
			p.NoteHang()
		case code != 0:
			w.say("%s exited with code %d after SIGTERM", p.Name, code)
		}
	default:
		p.Signal(syscall.SIGSTOP)
		f.wait(over)
		p.Signal(syscall.SIGCONT)
		return nil
	}
	f.wait(over)
	return p.Start()
}

// runThird lets a third process of a stage join and leave.
func (w *world) runThird(over context.Context, f Fault) error {
	stage, _, _ := strings.Cut(f.Target, "-")
	p, err := w.newProcess(f.Target, stage, Lanes[int(f.At/time.Millisecond/100)%len(Lanes)])
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	f.wait(over)
	sig := syscall.SIGTERM
	if f.With["end"] == "kill" {
		sig = syscall.SIGKILL
	}
	if _, hung := p.End(sig, 30*time.Second); hung {
		p.NoteHang()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.processes, f.Target)
	w.gone = append(w.gone, p)
	return nil
}

func restart(ctx, over context.Context, f Fault, s *services.Service, end func(context.Context) error) error {
	err := end(ctx)
	f.wait(over)
	if e := s.Start(ctx); e != nil {
		return e
	}
	return err
}

// reset changes a setting of Postgres for a while. Some only apply to new sessions, so the existing ones are
// terminated.
func (w *world) reset(ctx, over context.Context, f Fault, setting, bad, good string) error {
	set := func(value string) error {
		if err := w.set(ctx, setting, value); err != nil {
			return err
		}
		return services.Admin(ctx, services.PostgresURL(w.postgres.Port, "postgres"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos' AND application_name <> 'chaos'")
	}
	err := set(bad)
	f.wait(over)
	if e := set(good); e != nil {
		return e
	}
	return err
}

// set changes a setting of Postgres.
func (w *world) set(ctx context.Context, setting, value string) error {
	url := services.PostgresURL(w.postgres.Port, "postgres")
	for _, sql := range []string{"ALTER SYSTEM SET " + setting + " = " + value, "SELECT pg_reload_conf()"} {
		if err := services.Admin(ctx, url, sql); err != nil {
			return err
		}
	}
	return nil
}

// spoil applies a toxic between a lane and a service.
func (w *world) spoil(over context.Context, f Fault) error {
	var one toxics.Toxic
	directions := services.Streams
	switch f.Kind {
	case Latency:
		one = &toxics.LatencyToxic{Latency: f.number("latency"), Jitter: f.number("jitter")}
	case Bandwidth:
		one = &toxics.BandwidthToxic{Rate: f.number("rate")}
	case Reset:
		one = &toxics.ResetToxic{Timeout: f.number("timeout")}
		directions = services.Streams[:1]
	case Slicer:
		size := int(f.number("average_size"))
		one = &toxics.SlicerToxic{AverageSize: size, SizeVariation: size / 2, Delay: int(f.number("delay"))}
	default:
		one = new(toxics.TimeoutToxic)
		switch f.Kind {
		case CutTo:
			directions = services.Streams[:1]
		case CutFrom:
			directions = services.Streams[1:]
		}
	}
	for _, d := range directions {
		defer w.proxies.Spoil(f.Target, d, one)()
	}
	f.wait(over)
	return nil
}

// number returns a numeric parameter of a fault.
func (f Fault) number(name string) int64 {
	n, _ := strconv.ParseInt(f.With[name], 10, 64) //nolint:errcheck // written by draw
	return n
}

func (w *world) breakDevice(over context.Context, f Fault) error {
	d := w.fleet.Device(f.Target)
	switch f.Kind {
	case DeviceHang:
		d.SetFault(fleet.Fault{Kind: fleet.Hang, Everything: true})
	case DeviceFail:
		d.SetFault(fleet.Fault{Kind: fleet.Fail})
	case DeviceSlow:
		d.SetFault(fleet.Fault{Kind: fleet.Slow, Factor: 20})
	case DeviceGarbles:
		d.SetFault(fleet.Fault{Kind: []fleet.FaultKind{fleet.Truncate, fleet.BadJSON, fleet.Reset, fleet.RateLimit}[int(f.At/time.Millisecond/100)%4], Share: 0.7})
	default:
		w.silent.Store(f.Target, true)
		d.Stop()
		f.wait(over)
		w.silent.Delete(f.Target)
		return d.Start()
	}
	f.wait(over)
	d.ClearFault()
	return nil
}

// used returns the kinds of faults in a plan, and how often each occurs.
func used(plan []Fault) (names []Kind, count map[Kind]int) {
	count = map[Kind]int{}
	for _, f := range plan {
		count[f.Kind]++
	}
	for k := range count {
		names = append(names, k)
	}
	slices.Sort(names)
	return names, count
}
