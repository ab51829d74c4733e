package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func phantomCommand() *cobra.Command {
	var (
		o       flows.PhantomOptions
		size    []int
		spacing []float64
	)
	c := &cobra.Command{
		Use:   "phantom DIR",
		Short: "make CT-like chest scans to try things on",
		Long: `Phantom writes made-up chest CT volumes to DIR as NIfTI, up to 512x512x604: body,
lungs, vessels, airways, bone and noise, with spacing and affine set. Every seed is
another patient, and the same seed is always the same one.`,
		Example: `  flowrun phantom scans
  flowrun phantom scans --count 20 --size 512,512,604 --spacing 0.7,0.7,0.6 --gz`,
		Args: arguments(1, 1, "one folder, as in flowrun phantom scans"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(size) != 3 || len(spacing) != 3 {
				return usagef("phantom", "--size and --spacing want three numbers, as in 128,128,96")
			}
			o.Size, o.Spacing = [3]int(size), [3]float64(spacing)
			ctx, stop := cancelled(c.Context())
			defer stop()
			return phantoms(ctx, args[0], o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Count, "count", 4, "how many scans")
	f.IntSliceVar(&size, "size", []int{128, 128, 128}, "voxels along x,y,z")
	f.Float64SliceVar(&spacing, "spacing", []float64{0, 0, 0}, "millimetres a voxel along x,y,z; 0 lets the whole chest fit")
	f.Uint64Var(&o.Seed, "seed", 1, "the first patient")
	f.Float64Var(&o.Noise, "noise", 12, "standard deviation of the scanner's noise, in HU")
	f.BoolVar(&o.Gzip, "gz", false, "compress: .nii.gz")
	c.SilenceUsage = true
	return c
}
