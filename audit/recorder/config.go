package recorder

import (
	"time"

	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/internal/config"
)

// Config bounds the recorder. Zero fields stand for their defaults.
type Config struct {
	Retention          time.Duration    `yaml:"retention" default:"2160h" min:"24h" max:"876000h" doc:"How long audit rows are kept. Older days are dropped."`
	Writers            int              `yaml:"writers" default:"2" unit:"connections" min:"1" max:"32" doc:"Number of concurrent transactions. A partition is in one of them at a time."`
	ChunkRows          int              `yaml:"chunk_rows" default:"20000" unit:"rows" min:"1" max:"1000000" doc:"Maximum number of audit rows per transaction."`
	ChunkBytes         int64            `yaml:"chunk_bytes" default:"8MiB" unit:"bytes" min:"65536" max:"268435456" doc:"Maximum size of the records of one transaction. A single larger record gets its own transaction."`
	FetchBytes         int64            `yaml:"fetch_bytes" default:"32MiB" unit:"bytes" min:"1048576" max:"4294967296" doc:"Maximum size of records that were read but are not in Postgres yet, for each of the two topics."`
	WriteTimeout       time.Duration    `yaml:"write_timeout" default:"1m" min:"1s" max:"1h" doc:"Timeout of one transaction. It is retried."`
	LostAfter          time.Duration    `yaml:"lost_after" default:"10m" min:"1s" max:"168h" doc:"After Kafka deleted records before a stage read them, a task that Postgres knows ends as FAILED with the class lost if it has been in no topic for so long. It should be longer than writing a task takes, and Kafka may be away."`
	Maintenance        time.Duration    `yaml:"maintenance" default:"1h" min:"1s" max:"24h" doc:"How often partitions are created in advance and old ones dropped."`
	CheckpointInterval time.Duration    `yaml:"checkpoint_interval" default:"1m" min:"1s" max:"24h" doc:"How often one of the recorders signs the ends of the hash chains, if anything was recorded. See docs/audit.md."`
	CheckpointDir      string           `yaml:"checkpoint_dir" default:"audit-checkpoints" doc:"Directory that signed checkpoints are appended to, in addition to the topic checkpoints. Copy it to where no one who can write to Postgres can."`
	SigningKeyFile     string           `yaml:"signing_key_file" default:"" doc:"PEM file of the Ed25519 key (PKCS #8) that checkpoints are signed with, the same for all recorders; empty: signing.key in audit.checkpoint_dir, which is created if it does not exist."`
	CheckpointOrigin   string           `yaml:"checkpoint_origin" default:"" doc:"Name of the log of checkpoints, for witnesses: a URL without a scheme that belongs to you, such as example.com/batchyard. Each signing key needs its own. Empty: a name made from the key."`
	CheckpointCopies   []string         `yaml:"checkpoint_copies" default:"" doc:"Further directories, each checkpoint in a file of its own that is never replaced: a file system or a mounted object store with a retention lock."`
	Witnesses          []witness.Remote `yaml:"witnesses" doc:"Who cosigns checkpoints: batchyard audit witness, or another witness of c2sp.org/tlog-witness. Recording never waits for them."`
	WitnessQuorum      int              `yaml:"witness_quorum" default:"1" unit:"witnesses" min:"1" max:"16" doc:"How many of the witnesses have to cosign a checkpoint for audit verify to count it as witnessed."`
	DrainTimeout       time.Duration    `yaml:"drain_timeout" default:"15s" min:"100ms" max:"10m" doc:"How long a stopping recorder may take to write what it has read."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}
