package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/internal/config"
)

func configCommand(c *cli.Env) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Check the configuration",
		Long: `Reads the configuration and prints every problem, one per line. It connects to
nothing. Exit code 2 if there is a problem.`,
		Example: "  batchyard config check -c config.yaml",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error { return configCheck(c) },
	}
	var commented, markdown bool
	print := &cobra.Command{
		Use: "print", Short: "Print the configuration, or the reference of all settings",
		Long: `Prints the settings in effect: defaults, file and environment combined, with secrets
as ***.

With --commented or --markdown, prints the reference: every setting with its
meaning, unit, bounds and default; with -c, the values are those of that file.`,
		Example: `  batchyard config print
  batchyard config print --commented > config.yaml
  batchyard config print --json | jq .kafka`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error {
			if commented && markdown || c.JSON && (commented || markdown) {
				return cli.UsageError("--commented, --markdown and --json cannot be combined")
			}
			return configPrint(c, formOf(commented, markdown))
		},
	}
	for _, cmd := range []*cobra.Command{check, print} {
		c.ConfigFlag(cmd)
		c.JSONFlag(cmd)
	}
	print.Flags().BoolVar(&commented, "commented", false, "print config.yaml with every setting explained")
	print.Flags().BoolVar(&markdown, "markdown", false, "print the settings as Markdown tables")
	return cli.Group(&cobra.Command{Use: "config", Short: "Check or print the configuration", Example: "  batchyard config check"}, check, print)
}

// checked is what config check prints as JSON.
type checked struct {
	OK     bool     `json:"ok"`
	Errors []string `json:"errors,omitempty"`
}

func configCheck(c *cli.Env) error {
	_, err := c.Config(nil)
	if !c.JSON {
		if err == nil {
			c.Printf("the configuration is valid\n")
		}
		return err
	}
	out := checked{OK: err == nil}
	var all *config.Error
	switch {
	case errors.As(err, &all):
		out.Errors = all.Lines
	case err != nil:
		out.Errors = []string{err.Error()}
	}
	return errors.Join(c.PrintJSON(out), err)
}

// printForm is a form of `config print`.
type printForm int

const (
	plainForm     printForm = iota
	commentedForm           // every setting with its meaning
	markdownForm            // the reference
)

func formOf(commented, markdown bool) printForm { //nolint:revive // the flags themselves
	switch {
	case markdown:
		return markdownForm
	case commented:
		return commentedForm
	}
	return plainForm
}

func configPrint(c *cli.Env, form printForm) error {
	var cfg app.Config
	if form != plainForm && c.ConfigPath == "" {
		// The reference must be the same wherever it is printed, since it is kept in
		// repositories: ignore the environment and any config.yaml here.
		if err := config.Load(&cfg, config.Options{}); err != nil {
			return err
		}
	} else {
		var err error
		if cfg, err = c.Config(nil); err != nil {
			return err
		}
	}
	switch {
	case form == markdownForm:
		return config.WriteMarkdown(c.Out, &cfg)
	case c.JSON:
		return configJSON(c, &cfg)
	}
	style := config.Plain
	if form == commentedForm {
		style = config.Commented
	}
	return config.WriteYAML(c.Out, &cfg, style)
}

// configJSON goes through the YAML, so that it masks the same secrets.
func configJSON(c *cli.Env, cfg *app.Config) error {
	var b bytes.Buffer
	if err := config.WriteYAML(&b, cfg, config.Plain); err != nil {
		return err
	}
	var settings map[string]any
	if err := yaml.Unmarshal(b.Bytes(), &settings); err != nil {
		return fmt.Errorf("printing the configuration: %w", err)
	}
	return c.PrintJSON(settings)
}
