package task

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// JobState is how far a job is.
type JobState string

// The states of a job.
const (
	JobRunning   JobState = "RUNNING"   // not every task has finished, or not every one is submitted
	JobFinished  JobState = "FINISHED"  // every task has finished, however it ended
	JobCancelled JobState = "CANCELLED" // a user cancelled the job, and every task has finished
)

// JobStates lists the states of a job.
var JobStates = []JobState{JobRunning, JobFinished, JobCancelled}

// ParseJobState reads the name of a job's state, in letters of any case.
func ParseJobState(s string) (JobState, error) {
	if st := JobState(strings.ToUpper(s)); slices.Contains(JobStates, st) {
		return st, nil
	}
	return "", NewFieldError("state", "use RUNNING, FINISHED or CANCELLED", "unknown state of a job %q", Clip(s))
}

// Limits of a job's announcement.
const (
	MaxFileName  = 256  // characters of the name of the file
	maxJobLabels = 1536 // bytes of all labels together, as JSON
	maxJobCount  = 1 << 40
)

// The formats of a job's lines.
const (
	FormatOpenAI    = "openai"
	FormatBatchyard = "batchyard"
	FormatMixed     = "mixed"
)

// JobSpec announces a job: what its file is, before its tasks are submitted. The name of a
// job is bound to the fingerprint of its file: another file under the same name is refused.
type JobSpec struct {
	JobID    string            `json:"-"`
	Tenant   string            `json:"-"`
	SHA256   string            `json:"sha256"` // fingerprint of the file, in hex: a digest of what its lines ask for
	Tasks    int64             `json:"tasks"`
	Lines    int64             `json:"lines,omitempty"`     // blank ones included
	BadLines int64             `json:"bad_lines,omitempty"` // that were skipped
	Bytes    int64             `json:"bytes,omitempty"`
	File     string            `json:"file,omitempty"`   // its name, as the submitter wrote it
	Format   string            `json:"format,omitempty"` // of the lines: openai, batchyard or mixed
	Labels   map[string]string `json:"labels,omitempty"`
	Callback *Callback         `json:"callback,omitempty"` // gets the summary once every task has finished
}

// Fingerprint returns the fingerprint as bytes; nil if it is not 64 hex digits.
func (s *JobSpec) Fingerprint() []byte {
	b, err := hex.DecodeString(s.SHA256)
	if err != nil || len(b) != 32 {
		return nil
	}
	return b
}

// Validate returns the first problem of an announcement, as a *FieldError, or nil.
func (s *JobSpec) Validate() error {
	for _, f := range []struct {
		name, value string
		max         int
		must        presence
	}{
		{"job_id", s.JobID, MaxIDLength, required},
		{"tenant", s.Tenant, MaxIDLength, required},
		{"file", s.File, MaxFileName, optional},
	} {
		if err := checkText(f.name, f.value, f.max, f.must); err != nil {
			return err
		}
	}
	if s.Fingerprint() == nil {
		return NewFieldError("sha256", "send 64 hex digits", "it is not a SHA-256")
	}
	if s.Tasks < 1 || s.Tasks > maxJobCount {
		return NewFieldError("tasks", "send how many tasks the file has", "%d is out of range", s.Tasks)
	}
	if s.Lines < 0 || s.Lines > maxJobCount {
		return NewFieldError("lines", "send how many lines the file has, or omit it", "%d is out of range", s.Lines)
	}
	if s.BadLines < 0 || s.BadLines > maxJobCount {
		return NewFieldError("bad_lines", "send how many lines were skipped, or omit it", "%d is out of range", s.BadLines)
	}
	if s.Bytes < 0 || s.Bytes > maxJobCount*1024 {
		return NewFieldError("bytes", "send the size of the file, or omit it", "%d is out of range", s.Bytes)
	}
	if !slices.Contains([]string{"", FormatOpenAI, FormatBatchyard, FormatMixed}, s.Format) {
		return NewFieldError("format", "use openai, batchyard or mixed, or omit it", "unknown format")
	}
	if err := (&Task{Labels: s.Labels}).validateLists(); err != nil {
		return err
	}
	if b, err := json.Marshal(s.Labels); err != nil || len(b) > maxJobLabels {
		return NewFieldError("labels", "shorten them", "they have more than %d bytes together", maxJobLabels)
	}
	if s.Callback != nil {
		return CheckCallbackURL(s.Callback.URL)
	}
	return nil
}

// Job is how far a job is. A job that was not announced consists of the tasks that name it,
// and how many are still to come is unknown.
type Job struct {
	JobID    string           `json:"job_id"`
	Tenant   string           `json:"tenant"`
	State    JobState         `json:"state"`
	Total    int64            `json:"total"`                       // tasks of the file, or those known, if there are more
	Known    int64            `json:"known"`                       // tasks that are recorded
	Done     int64            `json:"done"`                        // tasks that have finished
	Tasks    map[State]int64  `json:"tasks"`                       // tasks by state
	Devices  map[string]int64 `json:"devices,omitempty"`           // finished tasks by the id of their device
	Errors   []JobError       `json:"errors,omitempty"`            // tasks without success by class, the most frequent first
	Usage    Usage            `json:"usage"`                       // tokens of the results
	Rate     float64          `json:"tasks_per_second,omitempty"`  // in the last minute; of a finished job, over its whole duration
	Seconds  float64          `json:"remaining_seconds,omitempty"` // until the job has finished, at that rate
	SHA256   string           `json:"sha256,omitempty"`            // fingerprint of the file, in hex; empty if the job was not announced
	File     string           `json:"file,omitempty"`
	Format   string           `json:"format,omitempty"`
	Lines    int64            `json:"lines,omitempty"`
	BadLines int64            `json:"bad_lines,omitempty"` // that were skipped when the file was submitted
	Bytes    int64            `json:"bytes,omitempty"`
	Labels   Labels           `json:"labels,omitempty"`
	Rounds   int              `json:"rounds,omitempty"` // how often it has finished: more than once after retries
	By       string           `json:"submitted_by,omitempty"`
	At       *time.Time       `json:"submitted_at,omitempty"`
	Cancel   *time.Time       `json:"cancel_requested_at,omitempty"`
	LastDone *time.Time       `json:"last_finished_at,omitempty"` // when the last of the finished tasks finished
}

// Labels are a submitter's own labels.
type Labels = map[string]string

// JobError is the tasks of a job that ended with one class of error.
type JobError struct {
	Class  ErrorClass `json:"class"`
	Tasks  int64      `json:"tasks"`
	Sample string     `json:"sample,omitempty"` // the message of one of them
}

// NotSubmitted returns how many tasks of the file are not recorded.
func (j *Job) NotSubmitted() int64 { return max(0, j.Total-j.Known) }

// Ended reports whether every task of the job has finished.
func (j *Job) Ended() bool { return j.State == JobFinished || j.State == JobCancelled }

// JobConflictError says that the name of a job belongs to another file.
type JobConflictError struct {
	JobID       string
	SHA256      string    // of the file that it belongs to
	SubmittedAt time.Time // when that was announced
}

func (e *JobConflictError) Error() string {
	return fmt.Sprintf("job %s is another file (sha256 %s, submitted %s): choose another name (--job), or submit that file to continue its job",
		e.JobID, e.SHA256, e.SubmittedAt.UTC().Format(time.RFC3339))
}
