package main

import "github.com/spf13/cobra"

func benchCommand() *cobra.Command {
	steps := 10
	c := &cobra.Command{
		Use:   "bench FILE.yaml [key=value …]",
		Short: "measure a training file: the model, the data, and both",
		Long: `Bench takes a few optimiser steps of a training file on its device: the model alone
on noise, with the time of each kind of op; the stages before it alone; and both, as in
a run. It says what bounds the run. It needs the file's scans, and leaves nothing.`,
		Example: `  flowrun bench train.yaml
  flowrun bench train.yaml train.device=cuda:0 --steps 20`,
		Args:              arguments(1, -1, "a file, as in flowrun bench train.yaml"),
		ValidArgsFunction: completeFile,
		RunE: func(c *cobra.Command, args []string) error {
			if err := fileFirst("bench", args); err != nil {
				return err
			}
			ctx, stop := cancelled(c.Context())
			defer stop()
			return benchFile(ctx, args[0], args[1:], steps, c.OutOrStdout())
		},
	}
	c.Flags().IntVar(&steps, "steps", steps, "optimiser steps of each measurement, behind the first")
	return c
}
