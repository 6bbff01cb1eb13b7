// Package jobview reads rows of the view job_progress: for the stage that answers questions
// about jobs, and for the one that finds them finished. Both say the same about a job,
// because the counting is done in the view.
package jobview

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// Columns are what [Scan] reads.
const Columns = `tenant, job_id, state, coalesce(tasks, 0), known, done, pending, assigned, running, succeeded, failed, cancelled, expired,
	coalesce(tasks_per_second, 0)::float8, coalesce(extract(epoch FROM remaining), 0)::float8, input_tokens, output_tokens, errors::text, devices::text,
	submitted_at, coalesce(submitted_by, ''), cancel_requested_at, last_finished_at, coalesce(sha256, ''), coalesce(file, ''), coalesce(format, ''),
	coalesce(lines, 0), coalesce(bad_lines, 0), coalesce(bytes, 0), labels::text, rounds`

// Scan reads a row with [Columns].
func Scan(row pgx.Row) (*task.Job, error) {
	j := &task.Job{Tasks: map[task.State]int64{}}
	var errs, devices, labels []byte
	counts := make([]int64, len(task.States))
	targets := []any{&j.Tenant, &j.JobID, &j.State, &j.Total, &j.Known, &j.Done}
	for i := range task.States { // the view has them in this order
		targets = append(targets, &counts[i])
	}
	targets = append(targets, &j.Rate, &j.Seconds, &j.Usage.InputTokens, &j.Usage.OutputTokens, &errs, &devices,
		&j.At, &j.By, &j.Cancel, &j.LastDone, &j.SHA256, &j.File, &j.Format, &j.Lines, &j.BadLines, &j.Bytes, &labels, &j.Rounds)
	if err := row.Scan(targets...); err != nil {
		return nil, err
	}
	for i, state := range task.States {
		if counts[i] > 0 {
			j.Tasks[state] = counts[i]
		}
	}
	for _, at := range []**time.Time{&j.At, &j.Cancel, &j.LastDone} {
		if *at != nil {
			utc := (*at).UTC()
			*at = &utc
		}
	}
	for _, part := range []struct {
		name string
		text []byte
		into any
	}{{"errors", errs, &j.Errors}, {"devices", devices, &j.Devices}, {"labels", labels, &j.Labels}} {
		if part.text == nil {
			continue
		}
		if err := json.Unmarshal(part.text, part.into); err != nil {
			return nil, fmt.Errorf("reading the %s of job %s: %w", part.name, j.JobID, err)
		}
	}
	return j, nil
}
