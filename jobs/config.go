package jobs

import (
	"github.com/batchyard/batchyard/task"

	"github.com/batchyard/batchyard/internal/config"
)

// Config limits job files.
type Config struct {
	MaxLines    int   `yaml:"max_lines" default:"1000000" unit:"lines" min:"1" max:"100000000" doc:"Maximum number of tasks per file."`
	MaxBytes    int64 `yaml:"max_bytes" default:"16GiB" unit:"bytes" min:"1024" max:"1099511627776" doc:"Maximum size of a file. Standard input is buffered in a temporary file of up to this size."`
	ChunkTasks  int   `yaml:"chunk_tasks" default:"500" unit:"tasks" min:"1" max:"1000" doc:"Number of tasks of a file that are submitted together."`
	ChunkBytes  int64 `yaml:"chunk_bytes" default:"4MiB" unit:"bytes" min:"1024" max:"67108864" doc:"Size of the inputs after which a part of a file is submitted, even if it has fewer tasks."`
	Concurrency int   `yaml:"concurrency" default:"4" unit:"chunks" min:"1" max:"64" doc:"Number of parts of a file that are submitted concurrently."`
}

// WithDefaults returns the configuration with defaults for what is not set.
func (c Config) WithDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// lineOverhead is how many bytes a line may have besides the input: ids, labels, needs.
const lineOverhead = 64 << 10

// Options determine how a file becomes a job.
type Options struct {
	Job      string    // id of the job; empty: derived from the file's fingerprint
	Bad      *BadLines // collects the invalid lines, which are skipped; nil: a file that has any is refused
	Defaults task.Task // tenant, priority, level, max_attempts, degrade, callback and deadline for lines that do not set them
	Limits   task.Limits
	Config   Config
	// Endpoint, if not empty, is that of every line, all of which are in OpenAI's format and leave the ids of
	// their tasks to the job.
	Endpoint     string
	LinesSetting string // the setting that bounds the number of lines, for errors; empty: jobs.max_lines
}
