package clock

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Variable is the environment variable that sets this process's clock wrong. It is for tests.
const Variable = "BATCHYARD_TEST_CLOCK"

// Skew is how wrong a clock is, from when on: its steps.
type Skew struct {
	began time.Time
	steps []step
}

// step is an offset, and how long after the start it begins to hold.
type step struct {
	offset, after time.Duration
}

// ParseSkew reads offsets such as "2h", or steps such as "2h,-30m@10s,0@20s": two hours ahead from the
// start, half an hour behind from 10 s after it, and right from 20 s after it. Empty is nil: a right clock.
func ParseSkew(text string) (*Skew, error) {
	if text == "" {
		return nil, nil
	}
	s := &Skew{began: time.Now()}
	for part := range strings.SplitSeq(text, ",") {
		offset, after, later := strings.Cut(part, "@")
		var st step
		var err error
		if st.offset, err = time.ParseDuration(offset); err == nil && later {
			st.after, err = time.ParseDuration(after)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the clock's offset %q: %w; use durations such as 2h, or 2h,-30m@10s", text, err)
		}
		s.steps = append(s.steps, st)
	}
	return s, nil
}

// at returns the offset at a time of time.Now.
func (s *Skew) at(now time.Time) (offset time.Duration) {
	ran := now.Sub(s.began)
	for _, st := range s.steps {
		if st.after <= ran {
			offset = st.offset
		}
	}
	return offset
}

// fromEnv reads the variable once, at the first use of the clock.
var fromEnv = sync.OnceValues(func() (*Skew, error) { return ParseSkew(os.Getenv(Variable)) })

// Check returns why the variable cannot be read, and whether it is set. Programs call it when they start.
func Check() (wrong bool, err error) {
	s, err := fromEnv()
	return s != nil, err
}

func skew() *Skew {
	s, _ := fromEnv() // Check returns the error
	return s
}
