package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// Groups of commands, as `batchyard --help` shows them.
const (
	groupWork    = "work"
	groupAsk     = "ask"
	groupOperate = "operate"
)

// rootCommand puts all commands together.
func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "batchyard",
		Short: "Run inference tasks on a fleet of OpenAI-compatible devices",
		Long: `Batchyard takes inference tasks from files, HTTP or Kafka, and runs them on a
fleet of OpenAI-compatible devices. Nothing that was accepted is lost.

Exit codes: 0 done; 1 the work did not succeed; 2 wrong usage or configuration;
3 a service cannot be reached.`,
		Example: `  batchyard run tasks.jsonl -o answers.jsonl
  batchyard submit tasks.jsonl --wait -o answers.jsonl
  batchyard tasks list --state FAILED`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
	}
	// Before anything is added: the completion command remembers where to write.
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	// Not cobra's own flag: to print the version as we do takes a template, and
	// text/template looks methods up by name. Then the linker has to keep every method
	// of every type, which made the program a quarter larger.
	version := root.Flags().BoolP("version", "v", false, "version for batchyard")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *version {
			c.printf("%s\n", versionString())
			return nil
		}
		return groupHelp(cmd, args)
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%s; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: groupWork, Title: "Run it:"},
		&cobra.Group{ID: groupAsk, Title: "Use a server that runs:"},
		&cobra.Group{ID: groupOperate, Title: "Operate it:"},
	)
	for group, commands := range c.commands() {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID(groupOperate)
	root.SetCompletionCommandGroupID(groupOperate)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "completion":
			completionExamples(group(cmd))
		case "help":
			cmd.Example = "  batchyard help tasks list"
		}
	}
	return root
}

// commands is every command by its group; a file each.
func (c *cli) commands() map[string][]*cobra.Command {
	return map[string][]*cobra.Command{
		groupWork:    {c.runCommand(), c.devCommand(), c.serveCommand(), c.agentCommand()},
		groupAsk:     {c.submitCommand(), c.tasksCommand(), c.devicesCommand(), c.policyCommand()},
		groupOperate: {c.auditCommand(), c.dlqCommand(), c.ledgerCommand(), c.migrateCommand(), c.topicsCommand(), c.configCommand(), c.benchCommand(), c.versionCommand()},
	}
}

// group makes a command of one that only holds others.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = groupHelp
	cmd.AddCommand(commands...)
	return cmd
}

// groupHelp answers for a command that only holds others: without arguments it
// tells them, and any argument would be one of them that there is not.
func groupHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError("there is no command %q in %s%s; see `%s --help`", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// completionExamples adds to cobra's own command what ours have.
func completionExamples(cmd *cobra.Command) {
	cmd.Example = "  batchyard completion bash > /etc/bash_completion.d/batchyard"
	for shell, example := range map[string]string{
		"bash":       "  source <(batchyard completion bash)",
		"zsh":        "  batchyard completion zsh > \"${fpath[1]}/_batchyard\"",
		"fish":       "  batchyard completion fish > ~/.config/fish/completions/batchyard.fish",
		"powershell": "  batchyard completion powershell | Out-String | Invoke-Expression",
	} {
		for _, sub := range cmd.Commands() {
			if sub.Name() == shell {
				sub.Example = example
			}
		}
	}
}

// completeStages completes the stages that are not named yet.
func completeStages(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	left := slices.DeleteFunc(app.StageNames(), func(s string) bool { return slices.Contains(args, s) })
	return left, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag completes a flag from a list. The flag is the command's own, so
// that a name it lacks is a mistake in the code, which every test finds.
func completeFlag(cmd *cobra.Command, flag string, values []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err)
	}
}

// completeNothing keeps the shell from offering files where none are wanted.
func completeNothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func stateNames() []string    { return names(task.States) }
func priorityNames() []string { return names(task.Priorities) }

func names[S ~string](values []S) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

func topicNames() []string {
	out := make([]string, len(stream.Topics))
	for i, t := range stream.Topics {
		out[i] = t.Name
	}
	return out
}
