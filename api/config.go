package api

import (
	"time"

	"github.com/batchyard/batchyard/internal/config"
)

// Config sets where the API listens and what bounds it keeps.
type Config struct {
	Listen        string        `yaml:"listen" default:"127.0.0.1:8080" doc:"Address and port to listen on; :8080 is every address of this machine. There is no authentication: put a proxy in front of it before others can reach it."`
	HeaderTimeout time.Duration `yaml:"header_timeout" default:"10s" min:"100ms" max:"5m" doc:"Time to send the headers of a request."`
	BodyTimeout   time.Duration `yaml:"body_timeout" default:"1m" min:"100ms" max:"1h" doc:"Time to send a whole request."`
	IdleTimeout   time.Duration `yaml:"idle_timeout" default:"2m" min:"1s" max:"1h" doc:"How long an unused connection stays open."`
	WriteTimeout  time.Duration `yaml:"write_timeout" default:"30s" min:"1s" max:"1h" doc:"Time for a client to take the next part of an answer."`
	SubmitTimeout time.Duration `yaml:"submit_timeout" default:"30s" min:"1s" max:"10m" doc:"How long a submit waits for Kafka before it is answered that the outcome is not known."`
	QueryTimeout  time.Duration `yaml:"query_timeout" default:"5s" min:"100ms" max:"1m" doc:"How long a question waits for Postgres or Redis."`
	MaxWait       time.Duration `yaml:"max_wait" default:"1m" min:"1s" max:"10m" doc:"The longest ?wait= for the end of a task."`
	DrainTimeout  time.Duration `yaml:"drain_timeout" default:"10s" min:"100ms" max:"5m" doc:"How long requests that run may take to end when the process stops."`
	MaxHeader     int64         `yaml:"max_header" default:"64KiB" unit:"bytes" min:"4096" max:"1048576" doc:"The largest headers of a request."`
	MaxBodies     int64         `yaml:"max_bodies" default:"128MiB" unit:"bytes" min:"1048576" max:"17179869184" doc:"Bytes of request bodies in memory at once; beyond, requests are told to come back."`
	MaxRequests   int64         `yaml:"max_requests" default:"10000" unit:"requests" min:"1" max:"1000000" doc:"Requests at once, waiting ones included; beyond, they are told to come back."`
	RefusedEvents int           `yaml:"refused_events" default:"20" unit:"events per second" min:"1" max:"10000" doc:"How many refused submits a second are recorded in the audit log; the rest is counted only."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}
