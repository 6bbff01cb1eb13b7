// Package test is the end-to-end suite. It runs the program in separate processes with
// Kafka, Redis and Postgres, either the embedded services or real ones; see package
// harness.
package test

import (
	"testing"

	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
