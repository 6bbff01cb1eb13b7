package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// Root returns the program's own command, to which the caller adds the others.
func (c *Env) Root() *cobra.Command {
	root := &cobra.Command{Use: "batchyard", SilenceErrors: true, SilenceUsage: true}
	// Before anything is added: the completion command remembers where to write.
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return UsageError("%s; see `%s --help`", err, cmd.CommandPath())
	})
	return Group(root)
}

// Group gives a command its subcommands. By itself it prints its help.
func Group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = GroupHelp
	cmd.AddCommand(commands...)
	return cmd
}

// GroupHelp runs a command that only has subcommands: it prints its help. An argument
// is a subcommand that does not exist; the error suggests similar names.
func GroupHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return UsageError("unknown command %q in %s%s; see `%s --help`", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// CompleteFlag completes a flag from a list. It panics if the command has no such
// flag: a mistake in the code, which every test finds.
func CompleteFlag(cmd *cobra.Command, flag string, values []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err)
	}
}

// CompleteNothing keeps the shell from offering files where none are wanted.
func CompleteNothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// Exactly accepts one argument per name.
func Exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > len(names):
			return UsageError("%s takes only %s: remove %q", NameOf(cmd), orNoArguments(names), args[len(names)])
		case len(args) < len(names):
			return UsageError("%s needs %s; see `%s --help`", NameOf(cmd), strings.Join(names[len(args):], " and "), cmd.CommandPath())
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

// AtLeastOne accepts one argument or more.
func AtLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return UsageError("%s needs %s; see `%s --help`", NameOf(cmd), name, cmd.CommandPath())
		}
		return nil
	}
}

// NameOf returns a command's path without the program's name, which every error starts with.
func NameOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
