package main

import (
	"context"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/device"
)

func policyCommand(c *cli.Env) *cobra.Command {
	get := &cobra.Command{
		Use: "get", Short: "Show which policy routers choose devices by, and who set it",
		Example: "  batchyard policy get\n  batchyard policy get --json | jq -r .policy",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return showPolicy(cmd.Context(), c, (*server).Policy) },
	}
	reset := &cobra.Command{
		Use: "reset", Short: "Return routers to the policy of their configuration",
		Example: "  batchyard policy reset",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return showPolicy(cmd.Context(), c, (*server).ResetPolicy) },
	}
	set := policySetCommand(c)
	for _, cmd := range []*cobra.Command{get, set, reset} {
		c.ClientFlags(cmd)
		c.JSONFlag(cmd)
	}
	return cli.Group(&cobra.Command{
		Use: "policy", Short: "Show how devices are chosen, or change it while routers run",
		Example: "  batchyard policy get\n  batchyard policy set power_of_two",
	}, get, set, reset)
}

func policySetCommand(c *cli.Env) *cobra.Command {
	var in batchyard.PolicySetting
	var weights map[string]string
	cmd := &cobra.Command{
		Use: "set POLICY", Short: "Change the policy by which routers choose devices",
		Long: `Makes all routers choose devices by another policy, within router.refresh_interval (1 s).
It overrides their configuration until "policy reset", or until Redis loses it.

The policies, which docs/routing.md compares:
  ` + strings.Join(device.PolicyNames(), "\n  "),
		Example: `  batchyard policy set power_of_two
  batchyard policy set round_robin --binding late
  batchyard policy set load_formula --weight cpu=0.6,mem=0.4`,
		Args: cli.Exactly("POLICY"), ValidArgsFunction: completePolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Policy = args[0]
			for _, name := range slices.Sorted(maps.Keys(weights)) {
				w, err := strconv.ParseFloat(weights[name], 64)
				if err != nil || math.IsNaN(w) || math.IsInf(w, 0) {
					return cli.UsageError("--weight %s=%s: not a number; write %s=0.5", name, weights[name], name)
				}
				if in.Weights == nil {
					in.Weights = map[string]float64{}
				}
				in.Weights[name] = w
			}
			return showPolicy(cmd.Context(), c, func(s *server, ctx context.Context) (*batchyard.PolicyStatus, error) { return s.SetPolicy(ctx, in) })
		},
	}
	cmd.Flags().StringVar(&in.Binding, "binding", "", "when a task is bound to a device: late, early, or auto (as the policy was designed)")
	cmd.Flags().StringVar(&in.Preset, "preset", "", "for load_formula: "+strings.Join(presetNames(), ", "))
	cmd.Flags().StringToStringVar(&weights, "weight", nil, "for load_formula: `figure=weight`, of "+strings.Join(device.LoadFigures, ", ")+"; repeatable")
	cli.CompleteFlag(cmd, "binding", device.Bindings)
	cli.CompleteFlag(cmd, "preset", presetNames())
	return cmd
}

func presetNames() []string { return slices.Sorted(maps.Keys(device.LoadPresets)) }

func completePolicies(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return device.PolicyNames(), cobra.ShellCompDirectiveNoFileComp
}

// showPolicy asks for or changes the policy, and prints the one in effect afterwards.
func showPolicy(ctx context.Context, c *cli.Env, ask func(*server, context.Context) (*batchyard.PolicyStatus, error)) error {
	server, err := connect(c)
	if err != nil {
		return err
	}
	st, err := ask(server, ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return c.PrintJSON(st.RawJSON())
	}
	t := cli.NewTable(c.Out)
	t.Row("policy", st.Policy)
	t.Row("binding", st.Binding)
	if w := weightsText(&st.PolicySetting); w != "" {
		t.Row("weights", w)
	}
	switch {
	case st.Source != "operator":
		t.Row("set by", "the configuration")
	case st.At != nil:
		t.Row("set by", st.By+", "+cli.Ago(*st.At, c.Now()))
		t.Row("otherwise", st.File.Policy+", "+st.File.Binding)
	}
	return t.Flush()
}

func weightsText(p *batchyard.PolicySetting) string {
	if p.Preset != "" {
		return "preset " + p.Preset
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(p.Weights)) {
		parts = append(parts, name+" "+strconv.FormatFloat(p.Weights[name], 'g', -1, 64))
	}
	return strings.Join(parts, ", ")
}
