// Package refusals counts the records that cannot be finished, because Kafka refuses what they became.
package refusals

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Count counts such records by the topic that they came from. It may be used from any goroutine.
type Count struct {
	gauge func(topic string, n int)

	mu      sync.Mutex
	byTopic map[string]*refusal
}

type refusal struct {
	records int
	err     error // the last one
}

// New returns a count that passes each change to the gauge.
func New(gauge func(topic string, n int)) *Count {
	return &Count{gauge: gauge, byTopic: map[string]*refusal{}}
}

// Add counts one more record of a topic.
func (f *Count) Add(topic string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byTopic[topic] == nil {
		f.byTopic[topic] = &refusal{}
	}
	f.byTopic[topic].records++
	f.gauge(topic, f.byTopic[topic].records)
}

// Note keeps why the newest one was refused.
func (f *Count) Note(topic string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.byTopic[topic]; t != nil {
		t.err = err
	}
}

// Remove counts n records less, because they are finished, or another process reads them.
func (f *Count) Remove(topic string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.byTopic[topic]
	if t == nil {
		return
	}
	if t.records -= n; t.records == 0 {
		delete(f.byTopic, topic)
	}
	f.gauge(topic, t.records)
}

// Records returns how many there are of a topic.
func (f *Count) Records(topic string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.byTopic[topic]; t != nil {
		return t.records
	}
	return 0
}

// Problem says what cannot be finished; nil: everything can.
func (f *Count) Problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for topic, t := range f.byTopic {
		errs = append(errs, fmt.Errorf("%d records of topic %s cannot be finished, because Kafka refuses what they became; they are tried again: %w", t.records, topic, t.err))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
