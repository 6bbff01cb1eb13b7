package api

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
)

// Config sets where the API listens and what bounds it keeps.
type Config struct {
	Listen        string        `yaml:"listen" default:"127.0.0.1:8080" doc:"Address and port to listen on. :8080 listens on all addresses. The API has no authentication: put a proxy in front of it before you expose it."`
	HeaderTimeout time.Duration `yaml:"header_timeout" default:"10s" min:"100ms" max:"5m" doc:"Time limit for a client to send the headers of a request."`
	BodyTimeout   time.Duration `yaml:"body_timeout" default:"1m" min:"100ms" max:"1h" doc:"Time limit for a client to send a whole request."`
	IdleTimeout   time.Duration `yaml:"idle_timeout" default:"2m" min:"1s" max:"1h" doc:"How long an unused connection stays open."`
	WriteTimeout  time.Duration `yaml:"write_timeout" default:"30s" min:"1s" max:"1h" doc:"Time limit for a client to read the next part of a response."`
	SubmitTimeout time.Duration `yaml:"submit_timeout" default:"30s" min:"1s" max:"10m" doc:"How long a submit waits for Kafka to acknowledge the tasks. After that the client is told that the outcome is unknown."`
	QueryTimeout  time.Duration `yaml:"query_timeout" default:"5s" min:"100ms" max:"1m" doc:"Timeout of a query to Postgres or Redis."`
	MaxWait       time.Duration `yaml:"max_wait" default:"1m" min:"1s" max:"10m" doc:"Longest ?wait= for a task to finish."`
	AnswerTimeout time.Duration `yaml:"answer_timeout" default:"10m" min:"1s" max:"24h" doc:"How long a plain OpenAI request, such as POST /v1/chat/completions, waits for its answer, unless the client says otherwise. Then its task ends as EXPIRED."`
	LongestAnswer time.Duration `yaml:"max_answer_timeout" default:"1h" min:"1s" max:"24h" doc:"The longest that a client can have a plain OpenAI request wait."`
	MaxAnswers    int64         `yaml:"max_waiting_requests" default:"1000" unit:"requests" min:"1" max:"100000" doc:"Maximum number of plain OpenAI requests that wait for their answers at the same time. Further ones get a 429 and a Retry-After."`
	DrainTimeout  time.Duration `yaml:"drain_timeout" default:"10s" min:"100ms" max:"5m" doc:"How long running requests may take to finish when the process stops."`
	MaxHeader     int64         `yaml:"max_header_bytes" default:"64KiB" unit:"bytes" min:"4096" max:"1048576" doc:"Maximum size of the headers of a request."`
	MaxBodies     int64         `yaml:"max_body_memory" default:"128MiB" unit:"bytes" min:"1048576" max:"17179869184" doc:"Memory for request bodies. Requests that would exceed it get a 503 and a Retry-After."`
	MaxRequests   int64         `yaml:"max_requests" default:"10000" unit:"requests" min:"1" max:"1000000" doc:"Maximum number of concurrent requests, including those that wait. Further requests get a 503 and a Retry-After."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}
