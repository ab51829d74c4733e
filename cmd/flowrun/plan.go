package main

import "github.com/spf13/cobra"

func planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan FILE.yaml [key=value …]",
		Short: "say what a run would take, without running it",
		Long: `Plan reads the file and the headers of its scans and prints the stages with what
flows between them, the tile grid, steps per epoch, the exact bytes of the
engine's memory by kind with the largest tensors, FLOPs per patch, the disk that
checkpoints take and, from a short timing, steps and patches an hour and the
hours to finish. It trains nothing and writes no checkpoint.`,
		Example: `  flowrun plan train.yaml
  flowrun plan train.yaml model.hidden=32    does it fit now?
  flowrun plan train.yaml run.hours=10       a schedule for one night`,
		Args:              arguments(1, -1, "a file, as in flowrun plan train.yaml"),
		ValidArgsFunction: completeFile,
		RunE: func(c *cobra.Command, args []string) error {
			if err := fileFirst("plan", args); err != nil {
				return err
			}
			ctx, stop := cancelled(c.Context())
			defer stop()
			return planFile(ctx, args[0], args[1:], c.OutOrStdout())
		},
	}
}
