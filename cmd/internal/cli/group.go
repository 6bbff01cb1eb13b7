package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// Root is the program itself, a command without commands so far.
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

// Group makes a command of one that only holds others.
func Group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = GroupHelp
	cmd.AddCommand(commands...)
	return cmd
}

// GroupHelp answers for a command that only holds others: without arguments it
// tells them, and any argument would be one of them that there is not.
func GroupHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return UsageError("there is no command %q in %s%s; see `%s --help`", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// CompleteFlag completes a flag from a list. The flag is the command's own, so
// that a name it lacks is a mistake in the code, which every test finds.
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

// Exactly wants one argument for each name.
func Exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > len(names):
			return UsageError("%s takes %s and nothing else, not also %q", NameOf(cmd), orNoArguments(names), args[len(names)])
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

// AtLeastOne wants one argument or more.
func AtLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return UsageError("%s needs %s; see `%s --help`", NameOf(cmd), name, cmd.CommandPath())
		}
		return nil
	}
}

// NameOf is a command without the program's name, with which errors begin anyway.
func NameOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
