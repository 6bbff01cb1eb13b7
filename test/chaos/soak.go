package chaos

import (
	"math/rand/v2"
	"slices"
	"time"
)

// soaking is what goes wrong in a month of operation, one thing at a time. Kafka stays: a restart takes longer
// than the retention of a soak, but not than one of days.
var soaking = deck{
	kinds: []Kind{
		Kill, Term, Third, Crowd, Pause, TopicGrown, RecordsDeleted, PostgresTimeout, PostgresSlow, KafkaSlow, PostgresFast, RedisFlush, RedisRestart,
		Latency, Reset, DeviceRefuse, DeviceHang, DeviceSlow, DeviceFail,
	},
	often: []Kind{Term, Third, Crowd, DeviceRefuse, PostgresTimeout, PostgresSlow, KafkaSlow, TopicGrown},
	gap:   6 * time.Second,
}

// soakRetention is for how long Kafka keeps records, as seven days of a month: longer than a stage needs to
// recover from the loss of a process.
func soakRetention(length time.Duration) time.Duration {
	if length < 5*time.Minute {
		return 10 * time.Second
	}
	return 20 * time.Second
}

// soakPlan lets each stage be absent in turn for two and a half retentions, as far as the time allows, and
// draws other faults around that.
func soakPlan(seed uint64, length, retention time.Duration, devices []string) []Fault {
	r := rand.New(rand.NewPCG(seed, 0x736f616b)) //nolint:gosec // must be reproducible
	stages := slices.Clone(Stages)
	r.Shuffle(len(stages), func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
	absent := retention * 5 / 2
	slot := absent + retention // to recover before the next one leaves
	var plan []Fault
	for at := 5 * time.Second; len(stages) > 0 && at+absent < length; at += slot {
		plan = append(plan, Fault{At: at, For: absent, Kind: Absent, Target: stages[0]})
		if long := boundRecorder + 20*time.Second; stages[0] == "audit" && at+absent+long < length {
			// What has gathered is too much for one transaction, for longer than the recorder may stand still.
			plan = append(plan, Fault{At: at + absent, For: long, Kind: PostgresTimeout, Target: "postgres", With: map[string]string{"timeout": "15"}})
		}
		stages = stages[1:]
	}
	return soaking.plan(seed, length, devices, plan)
}
