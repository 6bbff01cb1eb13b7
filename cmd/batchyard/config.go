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
		Use: "check", Short: "Say whether the configuration is right",
		Long: `Reads the configuration and says everything that is wrong with it, a line each.
It connects to nothing. Exit code 2 if something is wrong.`,
		Example: "  batchyard config check -c config.yaml",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error { return configCheck(c) },
	}
	var commented, markdown bool
	print := &cobra.Command{
		Use: "print", Short: "Print the configuration, or the reference of all settings",
		Long: `Prints the settings as they are in effect: defaults, file and environment put
together, with secrets as ***.

With --commented or --markdown, prints the reference: every setting with its
meaning, unit, bounds and default; with -c too, its values are those of that file.`,
		Example: `  batchyard config print
  batchyard config print --commented > config.yaml
  batchyard config print --json | jq .kafka`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(*cobra.Command, []string) error {
			if commented && markdown || c.JSON && (commented || markdown) {
				return cli.UsageError("--commented, --markdown and --json exclude each other")
			}
			return configPrint(c, commented, markdown)
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
			c.Printf("the configuration is right\n")
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

func configPrint(c *cli.Env, commented, markdown bool) error {
	var cfg app.Config
	if (commented || markdown) && c.ConfigPath == "" {
		// The reference is the same wherever it is printed, so that it can be
		// kept in a repository: no file that happens to be here, no environment.
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
	case markdown:
		return config.WriteMarkdown(c.Out, &cfg)
	case c.JSON:
		return configJSON(c, &cfg)
	}
	style := config.Plain
	if commented {
		style = config.Commented
	}
	return config.WriteYAML(c.Out, &cfg, style)
}

// configJSON prints what the YAML says, and so masks what it masks.
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
