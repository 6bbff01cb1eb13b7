package jobs

import (
	"github.com/batchyard/batchyard/task"

	"github.com/batchyard/batchyard/internal/config"
)

// Config limits job files.
type Config struct {
	MaxLines    int   `yaml:"max_lines" default:"1000000" unit:"lines" min:"1" max:"100000000" doc:"How many tasks one file may hold."`
	MaxBytes    int64 `yaml:"max_bytes" default:"16GiB" unit:"bytes" min:"1024" max:"1099511627776" doc:"The largest file; standard input is kept in a temporary file of at most this size."`
	ChunkTasks  int   `yaml:"chunk_tasks" default:"500" unit:"tasks" min:"1" max:"1000" doc:"How many tasks of a file are submitted together."`
	ChunkBytes  int64 `yaml:"chunk_bytes" default:"4MiB" unit:"bytes" min:"1024" max:"67108864" doc:"Bytes of input after which a chunk is submitted before it is full."`
	Concurrency int   `yaml:"concurrency" default:"4" unit:"chunks" min:"1" max:"64" doc:"How many chunks are on their way at once."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// lineOverhead is how many bytes a line may have besides the input: ids, labels, needs.
const lineOverhead = 64 << 10

// Options determine how a file becomes a job.
type Options struct {
	Job      string    // id of the job; empty: derived from the file's content
	Defaults task.Task // tenant, priority, level, max_attempts, degrade, callback and deadline for lines that do not set them
	Limits   task.Limits
	Config   Config
}
