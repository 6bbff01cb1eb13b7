package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/batchyard/batchyard/cmd/internal/app"
)

// cli is what the commands share: where they read and write, and the flags that
// more than one of them has.
type cli struct {
	in        io.Reader
	out, err  io.Writer
	stdoutTTY bool
	stderrTTY bool
	now       func() time.Time
	version   string

	configPath string
	server     string
	tenant     string
	json       bool
}

// makeCLI reads and writes what it is given.
func makeCLI(in io.Reader, out, err io.Writer) *cli {
	return &cli{in: in, out: out, err: err, stdoutTTY: isTerminal(out), stderrTTY: isTerminal(err), now: time.Now}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
}

// run runs one command line and returns its exit code.
func (c *cli) run(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		report(c.err, err)
	}
	return codeOf(err)
}

// configFlag is for commands that talk to Kafka, Redis or Postgres themselves.
func (c *cli) configFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.configPath, "config", "c", "", "configuration `file` (default: config.yaml if it is there; BATCHYARD_… variables come on top)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // completion only
}

// config loads the configuration. Its error has a line for each thing that is wrong.
func (c *cli) config(overrides map[string]string) (app.Config, error) {
	cfg, err := app.LoadConfig(c.configPath, overrides)
	cfg.Version = c.version
	return cfg, withCode(exitUsage, err)
}

// jsonFlag is for commands whose output is also for programs.
func (c *cli) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON, one object a line")
}

// clientFlags are for commands that use the HTTP API.
func (c *cli) clientFlags(cmd *cobra.Command) {
	c.serverFlag(cmd)
	cmd.Flags().StringVar(&c.tenant, "tenant", os.Getenv("BATCHYARD_TENANT"), "whose tasks are meant (BATCHYARD_TENANT; default: the tenant \"default\")")
}

func (c *cli) serverFlag(cmd *cobra.Command) {
	server := os.Getenv("BATCHYARD_SERVER")
	if server == "" {
		server = "http://127.0.0.1:8080"
	}
	cmd.Flags().StringVar(&c.server, "server", server, "`URL` of Batchyard's HTTP API (BATCHYARD_SERVER)")
}
