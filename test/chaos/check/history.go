// Package check compares what clients, services and processes know after a run with
// what Batchyard promises.
package check

import (
	"crypto/sha256"
	"time"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/watch"
)

// Outcome is what a client knows about the result of its submission.
type Outcome string

// The outcomes. After a timeout or a broken connection, it is Unknown. Aborted is a
// submission in a Kafka transaction that was aborted.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	Unknown  Outcome = "unknown"
	Aborted  Outcome = "aborted"
)

// Submit is one attempt to submit one task.
type Submit struct {
	Key      task.Key
	Outcome  Outcome
	Print    task.Fingerprint // what the task asks
	Via      string           // http/api-a, http/api-b, kafka or transaction
	At       time.Time
	Callback bool // the task asks for a callback
	Deadline bool
	Cancel   bool // a client requested cancellation, with whatever result
	Said     string
}

// Retry is one attempt to run a finished task again.
type Retry struct {
	Run     task.Run // that was asked for; the generation is 0 if the outcome is unknown
	Outcome Outcome
}

// Queued is the moment in which a router read a task and asked Postgres about it.
type Queued struct {
	Run       task.Run
	Print     task.Fingerprint // what the task asks
	At        time.Time
	Unchecked bool // Postgres did not answer
}

// Reused is a dead letter of a record whose id belongs to another request.
type Reused struct {
	Key   task.Key
	Print task.Fingerprint
}

// Seen is an answer to a status query.
type Seen struct {
	Key   task.Key
	State task.State
}

// Row is a row of tasks or results, or a record of the results topic.
type Row struct {
	Run    task.Run
	State  task.State
	Output [sha256.Size]byte // of results
	Lost   bool              // of results: it ended because its answer was lost
	Print  task.Fingerprint  // of tasks, and of results: what was asked

	Partition int32 // of a record of the results topic
	Offset    int64 // of a record of the results topic
}

// Change is a change recorded by a trigger in the database.
type Change struct {
	Table string   // tasks or results
	Run   task.Run // afterwards
	Op    string   // INSERT, UPDATE or DELETE
	From  task.State
	To    task.State
	Again bool // the generation is greater than before
	At    time.Time
}

// Due is a row of the callbacks table.
type Due struct {
	ID    string
	Run   task.Run
	State string
}

// Delivery is a request that reached the callback receiver.
type Delivery struct {
	ID      string // webhook-id
	Run     task.Run
	State   task.State
	Status  int    // of the receiver's answer
	Problem string // with the body or the signature
}

// Place is the position of an event in the events topic.
type Place struct {
	Partition int32
	Offset    int64
	Index     int
}

// Event is the part of an event that is compared with its audit row.
type Event struct {
	Place
	Action string
	Key    task.Key
	At     time.Time // when Kafka wrote it; of events in the topic
}

// Poison is an acknowledged record that is not a valid task.
type Poison struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Command is the result of one of the program's own checks.
type Command struct {
	Args     string
	Code     int
	Output   string
	Judged   bool // Findings are what it found; otherwise only its exit code counts
	Findings []Finding
}

// Finding is a problem that one of the program's own checks reported.
type Finding struct {
	Text     string
	Hole     *Hole // that it names; nil if it is about something else
	Expected bool  // because of what was done to the topics
}

// Process is what is known about one process of the program.
type Process struct {
	Name        string
	Exit        int    // code after the last SIGTERM; -1 if it hung and was killed
	Crash       string // how it crashed after it was ready; empty if it didn't
	Goroutines  [2]int // while idle, before and after the chaos
	Descriptors [2]int
}

// History is everything that clients, services and processes know after a run.
type History struct {
	Submits    []Submit
	Retries    []Retry
	Seen       []Seen
	Tasks      []Row
	Results    []Row
	Topic      []Row // records of the results topic
	Records    []Carried
	Absences   []Absence
	Removed    []Removal
	Holes      []Hole // that Batchyard names
	Announced  []Announced
	Reruns     []task.Run // that Batchyard ran again because their answers were lost
	Stalls     []watch.Stall
	ParkEvery  time.Duration // how often a waiting task has to be written again; 0: it is not checked
	MostParked int           // how often the task was that was parked most often; Check counts
	Gone       int           // tasks that Postgres cannot know because of holes; Check counts them
	Changes    []Change
	Callbacks  []Due
	Deliveries []Delivery
	Events     []Event // in the events topic
	Rows       []Event // in audit_log
	Poisons    []Poison
	Dead       []Poison // origins of the dead letters
	Reused     []Reused
	Cancelled  []Reused // requests that a cancel of their id ended, whosever the id is
	Queued     []Queued
	Commands   []Command
	Processes  []Process
	Left       []string // leaked credits, sessions and group members
	Undrained  string   // why the pipeline didn't drain; empty if it did
}
