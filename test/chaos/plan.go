package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// Kind is a way to break something.
type Kind string

// The kinds of faults.
const (
	Kill             Kind = "kill"              // SIGKILL and restart
	Pause            Kind = "pause"             // SIGSTOP for longer than the session timeout, then SIGCONT
	Term             Kind = "term"              // SIGTERM and restart
	Third            Kind = "third"             // a third process of a stage joins and leaves
	RedisFlush       Kind = "redis-flush"       // FLUSHALL
	RedisRestart     Kind = "redis-restart"     // kill; comes back empty
	PostgresFast     Kind = "postgres-fast"     // fast shutdown
	PostgresCrash    Kind = "postgres-crash"    // immediate shutdown
	PostgresReadOnly Kind = "postgres-readonly" // transactions cannot write
	PostgresFull     Kind = "postgres-full"     // the data disk is full
	PostgresTimeout  Kind = "postgres-timeout"  // statements may take a few milliseconds
	KafkaKill        Kind = "kafka-kill"
	KafkaClean       Kind = "kafka-clean"
	Latency          Kind = "latency"
	Bandwidth        Kind = "bandwidth"
	Reset            Kind = "reset"     // connections are reset repeatedly
	BlackHole        Kind = "blackhole" // nothing arrives in either direction
	CutTo            Kind = "cut-to"    // nothing arrives at the service
	CutFrom          Kind = "cut-from"  // nothing arrives from the service
	Slicer           Kind = "slicer"    // data arrives in small pieces
	DeviceHang       Kind = "device-hang"
	DeviceRefuse     Kind = "device-refuse" // the port is closed and heartbeats stop
	DeviceFail       Kind = "device-fail"   // answers 500
	DeviceSlow       Kind = "device-slow"
	DeviceGarbles    Kind = "device-garbles"  // broken answers
	TopicRecreated   Kind = "topic-recreated" // deleted while idle, and created again
	TopicGrown       Kind = "topic-grown"     // gets more partitions
	RecordsDeleted   Kind = "records-deleted" // before the stage that reads them has
	Absent           Kind = "absent"          // all processes of a stage, for longer than whatever expires
	Crowd            Kind = "crowd"           // more processes of a stage than partitions
	KafkaSlow        Kind = "kafka-slow"      // its disk is slow
	PostgresSlow     Kind = "postgres-slow"   // its disk is slow
)

// Every plan contains all kinds once before any repeats; those in often are more
// frequent.
var (
	single = deck{kinds: kinds, often: often} // the services are one process each
	kinds  = []Kind{
		Kill, Pause, Term, Third, RedisFlush, RedisRestart, PostgresFast, PostgresCrash, PostgresReadOnly, PostgresFull, PostgresTimeout,
		KafkaKill, KafkaClean, Latency, Bandwidth, Reset, BlackHole, CutTo, CutFrom, Slicer,
		DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles, TopicRecreated,
		TopicGrown, RecordsDeleted, Absent, Crowd, KafkaSlow, PostgresSlow,
	}
	often = []Kind{Kill, Kill, Kill, Kill, Pause, Pause, Term, RedisFlush, Reset, BlackHole, CutTo, CutFrom, Latency}
)

// deck is the kinds of faults of a plan.
type deck struct {
	kinds, often []Kind
	gap          time.Duration // between faults, on average; 0: all kinds fit into the first minute
}

// A stage is absent for longer than what expires in a run: sessions, leases, claims, and what Redis remembers
// of recent tasks and of the stages.
const (
	absentLeast = 12 * time.Second
	absentMost  = 16 * time.Second
)

// Stages are the stages. Each runs as two processes.
var Stages = []string{"api", "router", "batcher", "workers", "audit", "callbacks"}

// Lanes are the two sets of proxies.
var Lanes = []string{"a", "b"}

// Fault is something that is broken at a time and healed after a while.
type Fault struct {
	At     time.Duration     `json:"at"`
	For    time.Duration     `json:"for"`
	Kind   Kind              `json:"kind"`
	Target string            `json:"target"` // a process, a service, service/lane or a device
	With   map[string]string `json:"with,omitempty"`
}

func (f Fault) String() string { return fmt.Sprintf("%6.1fs  %s", f.At.Seconds(), f.what()) }

func (f Fault) what() string {
	s := fmt.Sprintf("%-17s %-12s %4.1fs", f.Kind, f.Target, f.For.Seconds())
	for _, k := range slices.Sorted(mapKeys(f.With)) {
		s += " " + k + "=" + f.With[k]
	}
	return s
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// serviceNames are the services behind the proxies.
var serviceNames = []string{"kafka", "redis", "postgres"}

// Plan draws the faults of a run. The same arguments give the same plan. Two faults of
// the same target never overlap; any others may.
func Plan(seed uint64, length time.Duration, devices []string) []Fault {
	var begin []Fault // while all is well; later, the topic may not become idle
	if length > 10*time.Second {
		begin = []Fault{{At: time.Second, Kind: TopicRecreated, Target: targetsOf(TopicRecreated, devices)[0]}}
	}
	if length > 3*absentMost { // others find no room for it
		r := rand.New(rand.NewPCG(seed, 0x616273656e74)) //nolint:gosec // must be reproducible
		at := length/4 + time.Duration(r.Int64N(int64(length/4)))
		absent := draw(r, Absent, at)
		absent.Target = Stages[r.IntN(len(Stages))]
		begin = append(begin, absent)
	}
	return single.plan(seed, length, devices, begin)
}

// plan draws faults around those that are given, which come first in the plan's random numbers.
func (d deck) plan(seed uint64, length time.Duration, devices []string, plan []Fault) []Fault {
	r := rand.New(rand.NewPCG(seed, 0x6368616f73)) //nolint:gosec // must be reproducible
	var deck []Kind
	shuffled := func(k []Kind) []Kind {
		k = slices.Clone(k)
		r.Shuffle(len(k), func(i, j int) { k[i], k[j] = k[j], k[i] })
		return k
	}
	gap := d.gap
	if gap == 0 { // fit all kinds into the first 60 s, or into the whole run if it is shorter
		gap = min(1800*time.Millisecond, length*8/10/time.Duration(len(d.kinds)))
	}
	first := true
	for at := 3 * time.Second; at < length-time.Second; at += gap/2 + time.Duration(r.Int64N(int64(gap))) {
		if len(deck) == 0 {
			deck = shuffled(d.kinds)
			if !first {
				deck = shuffled(append(deck, d.often...))
			} else {
				deck = append(deck, shuffled(d.often)...)
			}
			first = false
		}
		// Take the first kind in the deck that has an unbroken target.
		for i, k := range deck {
			f := draw(r, k, at)
			f.For = max(0, min(f.For, length-at))
			targets := shuffledStrings(r, targetsOf(k, devices))
			j := slices.IndexFunc(targets, func(t string) bool {
				f.Target = t
				return !slices.ContainsFunc(plan, f.overlaps)
			})
			if j < 0 || k == Absent && f.For < absentLeast {
				continue
			}
			plan = append(plan, f)
			deck = slices.Delete(deck, i, i+1)
			break
		}
	}
	slices.SortStableFunc(plan, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return plan
}

// overlaps reports whether two faults break the same at the same time. Recovery takes time as well.
func (f Fault) overlaps(o Fault) bool {
	if f.At >= o.At+o.For+recovery(o.Kind) || o.At >= f.At+f.For+recovery(f.Kind) {
		return false
	}
	mine := occupied(f.Kind, f.Target)
	return slices.ContainsFunc(occupied(o.Kind, o.Target), func(t string) bool { return slices.Contains(mine, t) })
}

func shuffledStrings(r *rand.Rand, s []string) []string {
	s = slices.Clone(s)
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// reader is the stage that reads a topic, or "".
func reader(topic string) string {
	switch topic {
	case stream.Assignments:
		return "batcher"
	case stream.Batches:
		return "workers"
	case stream.Results, stream.Events:
		return "audit"
	}
	return ""
}

// occupied returns what no other fault may break while a target is broken.
func occupied(k Kind, target string) []string {
	stage := target
	switch k {
	case RecordsDeleted:
		stage = reader(target)
	case Absent:
	default:
		return []string{target}
	}
	return []string{target, stage, stage + "-a", stage + "-b", stage + "-c", stage + "-crowd"}
}

func recovery(k Kind) time.Duration {
	switch k {
	case TopicGrown:
		return time.Hour // once is enough
	case Absent, RecordsDeleted, Crowd:
		return 5 * time.Second
	case TopicRecreated:
		return idleMost
	case KafkaKill, KafkaClean, BrokerKill:
		return 12 * time.Second
	case MasterKill, PrimaryKill, PrimaryLoses:
		return 8 * time.Second
	case PostgresFast, PostgresCrash, PostgresFull, PostgresReadOnly:
		return 1500 * time.Millisecond
	case Kill, Term, Third:
		return 3 * time.Second
	}
	return time.Second
}

func targetsOf(k Kind, devices []string) []string {
	var out []string
	switch k {
	case Kill, Pause, Term:
		for _, s := range Stages {
			for _, l := range Lanes {
				out = append(out, s+"-"+l)
			}
		}
	case Third:
		for _, s := range Stages {
			out = append(out, s+"-c")
		}
	case Absent:
		return Stages
	case Crowd:
		return []string{"router-crowd", "batcher-crowd", "workers-crowd", "audit-crowd"} // the stages that share partitions
	case RecordsDeleted:
		return []string{stream.Assignments, stream.Batches, stream.Results, stream.Events}
	case TopicGrown:
		return []string{stream.TasksNormal, stream.Assignments, stream.Batches, stream.Results, stream.Events}
	case Latency, Bandwidth, Reset, BlackHole, CutTo, CutFrom, Slicer:
		for _, s := range serviceNames {
			for _, l := range Lanes {
				out = append(out, s+"/"+l)
			}
		}
	case DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles:
		return devices
	case TopicRecreated:
		return []string{topicBase + stream.TasksLow}
	case BrokerKill:
		return []string{"kafka"}
	case MasterKill:
		return []string{"redis"}
	case PrimaryKill, PrimaryLoses:
		return []string{"postgres"}
	default:
		service, _, _ := strings.Cut(string(k), "-")
		return []string{service}
	}
	return out
}

// draw draws the duration and parameters of a fault.
func draw(r *rand.Rand, k Kind, at time.Duration) Fault {
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least))).Truncate(100*time.Millisecond)
	}
	f := Fault{At: at.Truncate(100 * time.Millisecond), Kind: k, With: map[string]string{}}
	number := func(key string, least, most int) { f.With[key] = fmt.Sprint(least + r.IntN(most-least)) }
	switch k {
	case Kill, Term:
		f.For = between(0, 3*time.Second)
	case Pause:
		f.For = between(SessionTimeout+time.Second, SessionTimeout+5*time.Second)
	case Third:
		f.For = between(2*time.Second, 6*time.Second)
		f.With["end"] = []string{"term", "kill"}[r.IntN(2)]
	case RedisFlush, TopicRecreated, TopicGrown:
	case Absent:
		f.For = between(absentLeast, absentMost)
	case RecordsDeleted:
		f.For = between(time.Second, 3*time.Second)
	case Crowd:
		f.For = between(4*time.Second, 8*time.Second)
	case KafkaSlow:
		f.For = between(3*time.Second, 6*time.Second)
		number("stop", 100, 400) // ms
	case PostgresSlow:
		f.For = between(2*time.Second, 4*time.Second)
	case BrokerKill:
		f.For = between(2*time.Second, 9*time.Second)
		f.With["member"] = fmt.Sprint("kafka-", 1+r.IntN(3))
	case MasterKill:
		f.For = between(4*time.Second, 8*time.Second)
	case PrimaryKill, PrimaryLoses:
		f.For = between(time.Second, 4*time.Second)
	case RedisRestart, PostgresFast, PostgresCrash:
		f.For = between(0, 4*time.Second)
	case PostgresTimeout:
		f.For = between(2*time.Second, 4*time.Second)
		number("timeout", 30, 50) // ms
	case PostgresReadOnly, PostgresFull:
		f.For = between(2*time.Second, 4*time.Second)
	case KafkaKill, KafkaClean:
		f.For = between(0, 2*time.Second)
	case Latency:
		f.For = between(3*time.Second, 8*time.Second)
		number("latency", 20, 400)
		number("jitter", 1, 200)
	case Bandwidth:
		f.For = between(3*time.Second, 6*time.Second)
		number("rate", 20, 200) // KB/s
	case Reset:
		f.For = between(500*time.Millisecond, 3*time.Second)
		number("timeout", 0, 300)
	case BlackHole, CutTo, CutFrom:
		f.For = between(time.Second, 8*time.Second)
	case Slicer:
		f.For = between(3*time.Second, 6*time.Second)
		number("average_size", 64, 512)
		number("delay", 20, 300) // µs
	case DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles:
		f.For = between(2*time.Second, 8*time.Second)
	}
	if len(f.With) == 0 {
		f.With = nil
	}
	return f
}
