package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// build describes how the program was built.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"commit_time,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the tree differed from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildOf() build {
	b := build{Version: cmp.Or(version, batchyard.Version), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.time":
				b.Time = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

// versionNumber returns the version alone.
func versionNumber() string { return buildOf().Version }

// versionString returns the version and the build on one line.
func versionString() string {
	b := buildOf()
	s := "batchyard " + b.Version
	if b.Commit != "" {
		s += " (" + b.Commit[:min(12, len(b.Commit))]
		if b.Modified {
			s += ", modified"
		}
		s += ")"
	}
	return fmt.Sprintf("%s %s %s", s, b.Go, b.Platform)
}

func versionCommand(c *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version",
		Example: "  batchyard version\n  batchyard version --json",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error {
			if c.JSON {
				return c.PrintJSON(buildOf())
			}
			c.Printf("%s\n", versionString())
			return nil
		},
	}
	c.JSONFlag(cmd)
	return cmd
}
