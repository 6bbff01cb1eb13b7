package main

import (
	"context"
	"io"
	"os"
	"strings"
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

	configPath string
	server     string
	tenant     string
	json       bool
}

func newCLI(in io.Reader, out, err io.Writer) *cli {
	return &cli{in: in, out: out, err: err, stdoutTTY: isTerminal(out), stderrTTY: isTerminal(err), now: time.Now}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
}

// run runs one command line and returns its exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.rootCommand()
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
	cfg.Version = versionNumber()
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

// exactly wants one argument for each name.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > len(names):
			return usageError("%s takes %s and nothing else, not also %q", nameOf(cmd), orNoArguments(names), args[len(names)])
		case len(args) < len(names):
			return usageError("%s needs %s; see `%s --help`", nameOf(cmd), strings.Join(names[len(args):], " and "), cmd.CommandPath())
		}
		return nil
	}
}

func orNoArguments(names []string) string {
	if len(names) == 0 {
		return "flags"
	}
	return strings.Join(names, " and ")
}

// atLeastOne wants one argument or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError("%s needs %s; see `%s --help`", nameOf(cmd), name, cmd.CommandPath())
		}
		return nil
	}
}

// nameOf is a command without the program's name, with which errors begin anyway.
func nameOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
