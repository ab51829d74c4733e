package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func phantomCommand() *cobra.Command {
	o := flows.PhantomOptions{Size: [3]int{128, 128, 128}}
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
			ctx, stop := cancelled(c.Context())
			defer stop()
			return phantoms(ctx, args[0], o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Count, "count", 4, "how many scans")
	f.Var((*axes[int])(&o.Size), "size", "voxels along each axis")
	f.Var((*axes[float64])(&o.Spacing), "spacing", "millimetres a voxel; 0 lets the whole chest fit")
	f.Uint64Var(&o.Seed, "seed", 1, "the first patient")
	f.Float64Var(&o.Noise, "noise", 12, "standard deviation of the scanner's noise, in HU")
	f.BoolVar(&o.Gzip, "gz", false, "compress: .nii.gz")
	c.SilenceUsage = true
	return c
}

// axes is a flag's value along x, y and z.
type axes[T int | float64] [3]T

func (a *axes[T]) Type() string { return "x,y,z" }

func (a *axes[T]) String() string { return fmt.Sprintf("%v,%v,%v", a[0], a[1], a[2]) }

func (a *axes[T]) Set(text string) error {
	parts := strings.Split(text, ",")
	if len(parts) != 3 {
		return errors.New("want three numbers, as in 128,128,96")
	}
	for i, p := range parts {
		if n, err := fmt.Sscanf(p+"\n", "%v\n", &a[i]); n != 1 || err != nil {
			return fmt.Errorf("%q isn't a number that fits (want three, as in 128,128,96)", p)
		}
	}
	return nil
}
