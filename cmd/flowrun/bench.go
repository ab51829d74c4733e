package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func benchCommand() *cobra.Command {
	var o flows.BenchOptions
	c := &cobra.Command{
		Use:   "bench FILE.yaml [key=value …]",
		Short: "time the model, the data and both, and say what bounds the run",
		Long: `Bench runs a file's graph for a short while, three times: up to the batches that
the model would be given, with nothing computed; the model by itself, on one of
these batches again and again, in each phase of training that the file asks for;
and the whole graph. It prints patches and voxels a second, the share of each kind
of op, how far the convolutions are from a lone one that suits the device, how
near the whole comes to its slower half, and which stage bounds it.

Files that train, reconstruct or encode will do. Voxels are those of patches, which
overlap. Discriminators learn from the first step on here, and behind that are what
the whole graph is timed with. Nothing is written to the run's folder, nothing that
is trained is kept; scans that the flow writes go to a temporary folder (TMPDIR).
Ctrl-C prints what is known.`,
		Example: `  flowrun bench train.yaml
  flowrun bench train.yaml tile.patch='[64, 64, 64]' train.device=cuda:0
  flowrun bench reconstruct.yaml --seconds 30 --json`,
		Args:              arguments(1, -1, "a file, as in flowrun bench train.yaml"),
		ValidArgsFunction: completeFile,
		RunE: func(c *cobra.Command, args []string) error {
			if err := fileFirst("bench", args); err != nil {
				return err
			}
			if o.Steps < 1 || !(o.Seconds > 0) {
				return usagef("bench", "--steps and --seconds want more than 0")
			}
			ctx, stop := cancelled(c.Context())
			defer stop()
			return benchFile(ctx, args[0], args[1:], ui(c.OutOrStdout(), c.ErrOrStderr(), false), o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Steps, "steps", 20, "optimiser steps, or batches, of the model by itself that are timed in each phase, at most")
	f.Float64Var(&o.Seconds, "seconds", 10, "time of each measurement, at most; a step that has begun is finished")
	f.BoolVar(&o.JSON, "json", false, "write JSON, in units of seconds, bytes and FLOPs")
	return c
}
