package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/internal/config"
)

func configCommand(c *cli) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Say whether the configuration is right",
		Long: `Reads the configuration and says everything that is wrong with it, a line each.
It connects to nothing. Exit code 2 if something is wrong.`,
		Example: "  batchyard config check -c config.yaml",
		Args:    exactly(), ValidArgsFunction: completeNothing,
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
		Args: exactly(), ValidArgsFunction: completeNothing,
		RunE: func(*cobra.Command, []string) error {
			if commented && markdown || c.json && (commented || markdown) {
				return usageError("--commented, --markdown and --json exclude each other")
			}
			return configPrint(c, commented, markdown)
		},
	}
	for _, cmd := range []*cobra.Command{check, print} {
		c.configFlag(cmd)
		c.jsonFlag(cmd)
	}
	print.Flags().BoolVar(&commented, "commented", false, "print config.yaml with every setting explained")
	print.Flags().BoolVar(&markdown, "markdown", false, "print the settings as Markdown tables")
	return group(&cobra.Command{Use: "config", Short: "Check or print the configuration", Example: "  batchyard config check"}, check, print)
}

// checked is what config check prints as JSON.
type checked struct {
	OK     bool     `json:"ok"`
	Errors []string `json:"errors,omitempty"`
}

func configCheck(c *cli) error {
	_, err := c.config(nil)
	if !c.json {
		if err == nil {
			c.printf("the configuration is right\n")
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
	return errors.Join(c.printJSON(out), err)
}

func configPrint(c *cli, commented, markdown bool) error {
	var cfg app.Config
	if (commented || markdown) && c.configPath == "" {
		// The reference is the same wherever it is printed, so that it can be
		// kept in a repository: no file that happens to be here, no environment.
		if err := config.Load(&cfg, config.Options{}); err != nil {
			return err
		}
	} else {
		var err error
		if cfg, err = c.config(nil); err != nil {
			return err
		}
	}
	switch {
	case markdown:
		return config.WriteMarkdown(c.out, &cfg)
	case c.json:
		return configJSON(c, &cfg)
	}
	style := config.Plain
	if commented {
		style = config.Commented
	}
	return config.WriteYAML(c.out, &cfg, style)
}

// configJSON prints what the YAML says, and so masks what it masks.
func configJSON(c *cli, cfg *app.Config) error {
	var b bytes.Buffer
	if err := config.WriteYAML(&b, cfg, config.Plain); err != nil {
		return err
	}
	var settings map[string]any
	if err := yaml.Unmarshal(b.Bytes(), &settings); err != nil {
		return fmt.Errorf("printing the configuration: %w", err)
	}
	return c.printJSON(settings)
}
