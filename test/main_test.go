// Package test is the end-to-end suite: the program, as processes of its own, on
// Kafka, Redis and Postgres. It runs unchanged on the embedded services and on
// real ones; see package harness.
package test

import (
	"testing"

	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
