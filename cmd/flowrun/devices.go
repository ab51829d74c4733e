package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func devicesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "devices",
		Short: "list the GPUs, or say why there are none",
		Long: `Devices prints what a stage's device key can name: each GPU that the NVIDIA driver
lists, with its memory, compute capability and the CUDA version of the driver, or
why there is none; and the CPU engine.`,
		Example: "  flowrun devices",
		Args:    arguments(0, 0, "no words"),
		RunE:    func(c *cobra.Command, _ []string) error { return flows.Devices(c.OutOrStdout()) },
	}
}
