package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// unrecordedCommands says why a command leaves no row of its own.
var unrecordedCommands = map[string]string{
	"serve": "process.started", "dev": "process.started", "run": "process.started",
	"agent":  "the server records the device",
	"submit": "the server records it", "tasks": "the server records it", "devices": "the server records it", "policy": "the server records it",
	"jobs submit": "the server records it", "jobs list": "the server records it", "jobs get": "the server records it", "jobs watch": "the server records it",
	"jobs cancel": "the server records it", "jobs results": "the server records it", "jobs retry": "the server records it",
	"audit check-proof": "it reads a file only", "audit witness": "it runs where there is no audit log, and prints what it cosigns",
	"dlq replay":           "a row for each dead letter",
	"audit accept-restore": "it writes its row before it signs",
	"audit actions":        "it prints the program's own list",
	"topics list":          "it shows names and limits only",
	"fleet":                "it plays devices, and has no installation",
	"config":               "it reads the local file only", "bench": "it measures with data of its own", "version": "it reads nothing",
	"migrate status": "it shows the version only",
	"help":           "it reads nothing", "completion": "it reads nothing",
}

// A new command has to say how the audit log learns of it.
func TestEveryCommandIsRecordedOrExempt(t *testing.T) {
	var out bytes.Buffer
	root := rootCommand(newCLI(strings.NewReader(""), &out, &out))
	used := map[string]bool{}
	var walk func(cmd *cobra.Command, path string)
	walk = func(cmd *cobra.Command, path string) {
		for _, sub := range cmd.Commands() {
			at := strings.TrimSpace(path + " " + sub.Name())
			_, exempt := unrecordedCommands[at]
			_, recorded := recordedCommands[at]
			require.False(t, exempt && recorded, at)
			if exempt || recorded {
				used[at] = true
				continue // with all below it
			}
			require.True(t, sub.HasSubCommands(), "%s: add it to recordedCommands, or say in this test why it leaves no row", at)
			walk(sub, at)
		}
	}
	walk(root, "")
	for at := range unrecordedCommands {
		require.True(t, used[at], "%s is not a command", at)
	}
	for at, r := range recordedCommands {
		require.True(t, used[at], "%s is not a command", at)
		require.True(t, r.Action.Listed(), at)
	}
}
