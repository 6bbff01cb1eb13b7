package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// root is the program itself, a command without commands so far.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{Use: "batchyard", SilenceErrors: true, SilenceUsage: true}
	// Before anything is added: the completion command remembers where to write.
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%s; see `%s --help`", err, cmd.CommandPath())
	})
	return group(root)
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
