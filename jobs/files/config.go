package files

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
)

// Config says where files are and what bounds they have.
type Config struct {
	URL       string        `yaml:"url" default:"batchyard-files" doc:"Where uploaded files and the output of batches are kept: a directory, which is created with the first file, or its file:// URL. Every process with the stage api needs the same one."`
	MaxBytes  int64         `yaml:"max_bytes" default:"200MiB" unit:"bytes" min:"1024" max:"1099511627776" doc:"Maximum size of an uploaded file."`
	MaxLines  int           `yaml:"max_lines" default:"50000" unit:"lines" min:"1" max:"100000000" doc:"Maximum number of requests of a batch."`
	OutputTTL time.Duration `yaml:"output_ttl" default:"720h" min:"1h" max:"87600h" doc:"How long the output of a batch is kept, unless its client asks for another time."`
}

// WithDefaults returns the configuration with defaults for what is not set.
func (c Config) WithDefaults() Config {
	config.FillDefaults(&c)
	return c
}
