package main

import (
	"context"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/auditcmd"
	"github.com/batchyard/batchyard/cmd/internal/benchcmd"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/dlqcmd"
	"github.com/batchyard/batchyard/cmd/internal/migratecmd"
	"github.com/batchyard/batchyard/task"
)

// Groups of commands in `batchyard --help`.
const (
	groupWork    = "work"
	groupAsk     = "ask"
	groupOperate = "operate"
)

// newCLI returns what the commands of this program share.
func newCLI(in io.Reader, out, err io.Writer) *cli.Env {
	c := cli.New(in, out, err)
	c.Version = versionNumber()
	return c
}

// Run runs one command line and returns its exit code.
func run(ctx context.Context, c *cli.Env, args []string) int {
	return c.Run(ctx, rootCommand(c), args)
}

// rootCommand returns the program with all of its commands.
func rootCommand(c *cli.Env) *cobra.Command {
	root := c.Root()
	root.Short = "Run inference tasks on a fleet of OpenAI-compatible devices"
	root.Long = `Batchyard takes inference tasks from files, HTTP or Kafka, and runs them on a
fleet of OpenAI-compatible devices. It loses no task that it accepted.

Exit codes: 0 done; 1 the work did not succeed; 2 wrong usage or configuration;
3 a service cannot be reached; 130 interrupted.`
	root.Example = `  batchyard run tasks.jsonl -o answers.jsonl
  batchyard submit tasks.jsonl --wait -o answers.jsonl
  batchyard tasks list --state FAILED`
	// Not cobra's own flag: our format of the version would take a template, and
	// text/template looks methods up by name. The linker would then keep every method
	// of every type, which made the program a quarter larger.
	version := root.Flags().BoolP("version", "v", false, "version for batchyard")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *version {
			c.Printf("%s\n", versionString())
			return nil
		}
		return cli.GroupHelp(cmd, args)
	}
	root.AddGroup(
		&cobra.Group{ID: groupWork, Title: "Run it:"},
		&cobra.Group{ID: groupAsk, Title: "Use a server that runs:"},
		&cobra.Group{ID: groupOperate, Title: "Operate it:"},
	)
	for group, commands := range allCommands(c) {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	recordCommands(c, root, "")
	root.SetHelpCommandGroupID(groupOperate)
	root.SetCompletionCommandGroupID(groupOperate)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "completion":
			completionExamples(cli.Group(cmd))
		case "help":
			cmd.Example = "  batchyard help tasks list"
		}
	}
	return root
}

// allCommands returns every command by its group.
func allCommands(c *cli.Env) map[string][]*cobra.Command {
	return map[string][]*cobra.Command{
		groupWork:    {runCommand(c), devCommand(c), serveCommand(c), agentCommand(c), fleetCommand(c)},
		groupAsk:     {submitCommand(c), jobsCommand(c), tasksCommand(c), devicesCommand(c), policyCommand(c)},
		groupOperate: {auditcmd.Command(c), dlqcmd.Command(c), auditcmd.LedgerCommand(c), migratecmd.Command(c), topicsCommand(c), configCommand(c), benchcmd.Command(c), versionCommand(c)},
	}
}

// completionExamples adds examples to cobra's own command.
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

// completeStages completes the stages that are not on the command line yet.
func completeStages(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	left := slices.DeleteFunc(app.StageNames(), func(s string) bool { return slices.Contains(args, s) })
	return left, cobra.ShellCompDirectiveNoFileComp
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
