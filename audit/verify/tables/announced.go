package tables

import (
	"encoding/hex"
	"encoding/json"
	"hash/maphash"
	"strconv"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/task"
)

// A job's row changes until the job has finished, and a recorder that writes it records the digest of what it finds
// there. So what was announced is compared with the announcements, too: each value must be in one of them.

// announcements are hashes of the values that the announcements of jobs have.
type announcements map[uint64]struct{}

// announcedValue hashes a value; the empty name is for that the job was announced at all.
func (l *Log) announcedValue(tenant, job []byte, name string, value ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	for _, b := range [][]byte{tenant, job, []byte(name)} {
		_, _ = h.Write(b)
		_ = h.WriteByte(0)
	}
	for _, v := range value {
		_, _ = h.WriteString(v)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

func (l *Log) announced(r *copyrows.Row, most *error) {
	var spec task.JobSpec
	if json.Unmarshal(r.Field(audit.ColDetail), &spec) != nil || spec.Fingerprint() == nil || spec.Tasks < 1 {
		return
	}
	tenant, job := r.Field(audit.ColTenant), r.Field(colJob)
	decimal := func(n int64) string { return strconv.FormatInt(n, 10) }
	for name, values := range map[string][]string{
		"":             nil,
		"the size":     {hex.EncodeToString(spec.Fingerprint()), decimal(spec.Tasks), decimal(spec.Lines), decimal(spec.BadLines), decimal(spec.Bytes)},
		"file":         {spec.File},
		"format":       {spec.Format},
		"submitted_by": {string(r.Field(colActor))},
	} {
		key := l.announcedValue(tenant, job, name, values...)
		if _, ok := l.jobsSaid[key]; !ok {
			l.jobsSaid[key] = struct{}{}
			l.count(most)
		}
	}
}

// Columns of jobs, as [Log.job] gets them.
const jobFingerprint, jobTasks, jobLines, jobBadLines, jobBytes, jobFile, jobFormat, jobBy = 2, 3, 4, 5, 6, 7, 8, 12

// notAnnounced returns what a job's row says that no announcement in the log does; empty: nothing.
func (l *Log) notAnnounced(r *copyrows.Row) string {
	said := func(name string, value ...string) bool {
		_, ok := l.jobsSaid[l.announcedValue(r.Field(0), r.Field(1), name, value...)]
		return ok
	}
	if !said("") {
		return ""
	}
	text := func(i int) string { return string(r.Field(i)) }
	size := []string{hex.EncodeToString(r.Field(jobFingerprint))}
	for _, i := range []int{jobTasks, jobLines, jobBadLines, jobBytes} {
		size = append(size, strconv.FormatInt(r.Int8(i), 10))
	}
	switch {
	case !said("the size", size...):
		return "fingerprint, tasks, lines or bytes"
	case !said("file", text(jobFile)):
		return "file"
	case !said("format", text(jobFormat)):
		return "format"
	case !said("submitted_by", text(jobBy)):
		return "submitted_by"
	}
	return ""
}
