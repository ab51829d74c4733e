package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func exportCommand() *cobra.Command {
	var o flows.ExportOptions
	c := &cobra.Command{
		Use:   "export CHECKPOINT OUT.safetensors",
		Short: "write a checkpoint's weights as a plain PyTorch state dict",
		Long: `Export writes weights, codebook and discriminators under their PyTorch names,
without the optimiser. safetensors.torch.load_file reads what it wrote. With --for
medicaldiffusion it refuses a model that medicaldiffusion can't express.`,
		Example: `  flowrun export runs/ctpa/checkpoints/best.safetensors weights.safetensors`,
		Args:    arguments(2, 2, "a checkpoint and a file to write, as in flowrun export best.safetensors weights.safetensors"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"safetensors"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := cancelled(c.Context())
			defer stop()
			return export(ctx, c.OutOrStdout(), args[0], args[1], o)
		},
	}
	c.Flags().StringVar(&o.Weights, "weights", "", "ema or raw; left out, ema where there are any")
	c.Flags().StringVar(&o.For, "for", "", "medicaldiffusion: refuse what it can't express")
	c.Flags().StringVar(&o.Axes, "axes", "", "order of the kernels' spatial axes, such as zxy; left out, "+flows.AxesDefault)
	completeFlag(c, "weights", cobra.ShellCompDirectiveNoFileComp, flows.ExportEMA, flows.ExportRaw)
	completeFlag(c, "for", cobra.ShellCompDirectiveNoFileComp, flows.MedicalDiffusion)
	completeFlag(c, "axes", cobra.ShellCompDirectiveNoFileComp, "zyx", "zxy", "yzx", "yxz", "xzy", "xyz")
	return c
}
