// Package cli is the kit that the commands of batchyard share: where they read and
// write, the flags that several have, tables, progress and exit codes.
//
// It holds no command. A command is a function that takes an [Env] and returns a
// cobra command; its errors carry the exit code that they end the program with.
package cli

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/batchyard/batchyard/cmd/internal/app"
)

// Env is what the commands of one command line share: where they read and write,
// and the values of the flags that several commands have.
type Env struct {
	In        io.Reader
	Out, Err  io.Writer
	StderrTTY bool
	Now       func() time.Time
	Version   string

	ConfigPath string
	Server     string
	Tenant     string
	JSON       bool
}

// New returns an Env that reads from in and writes to out and err. The clock is the
// system's; tests replace Now.
func New(in io.Reader, out, err io.Writer) *Env {
	return &Env{In: in, Out: out, Err: err, StderrTTY: IsTerminal(err), Now: time.Now}
}

// IsTerminal reports whether a reader or writer is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
}

// Run runs one command line and returns its exit code.
func (c *Env) Run(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		report(c.Err, err)
	}
	return CodeOf(err)
}

// ConfigFlag is for commands that talk to Kafka, Redis or Postgres themselves.
func (c *Env) ConfigFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.ConfigPath, "config", "c", "", "configuration `file` (default: config.yaml if it is there; BATCHYARD_… variables come on top)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // completion only
}

// Config loads the configuration. Its error has one line per problem.
func (c *Env) Config(overrides map[string]string) (app.Config, error) {
	cfg, err := app.LoadConfig(c.ConfigPath, overrides)
	cfg.Version = c.Version
	return cfg, WithCode(ExitUsage, err)
}

// JSONFlag is for commands whose output programs read, too.
func (c *Env) JSONFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON, one object per line")
}

// ClientFlags are for commands that use the HTTP API.
func (c *Env) ClientFlags(cmd *cobra.Command) {
	c.ServerFlag(cmd)
	cmd.Flags().StringVar(&c.Tenant, "tenant", os.Getenv("BATCHYARD_TENANT"), "`tenant` that owns the tasks (BATCHYARD_TENANT; default: the tenant \"default\")")
}

// DefaultServer is the address of the API without a flag or a variable.
const DefaultServer = "http://127.0.0.1:8080"

// ServerFlag is for commands that reach the API but own no tasks.
func (c *Env) ServerFlag(cmd *cobra.Command) {
	server := os.Getenv("BATCHYARD_SERVER")
	if server == "" {
		server = DefaultServer
	}
	cmd.Flags().StringVar(&c.Server, "server", server, "`URL` of Batchyard's HTTP API (BATCHYARD_SERVER)")
}
