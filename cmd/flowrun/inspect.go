package main

import "github.com/spf13/cobra"

func inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "say what is in a checkpoint (.safetensors, .pth) or a scan (NIfTI)",
		Long: `Inspect prints what a file holds. Of a checkpoint: step, epoch, metrics, tensors
and their shapes. Of a scan: size, spacing, orientation, sample type. Of a file of
torch.save (.pth, .pt, .ckpt): tensors and their shapes; none of its code is run.`,
		Example: `  flowrun inspect runs/ctpa/checkpoints/best.safetensors
  flowrun inspect scan.nii.gz`,
		Args: arguments(1, 1, "one file, as in flowrun inspect scan.nii.gz"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"safetensors", "pth", "pt", "ckpt", "nii", "nii.gz", "hdr"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			return inspect(c.OutOrStdout(), args[0])
		},
	}
}
