package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func importCommand() *cobra.Command {
	var o flows.ImportOptions
	c := &cobra.Command{
		Use:   "import MODEL [key=value …]",
		Short: "make a checkpoint of a PyTorch state dict",
		Long: `Import reads the weights of a VQ-GAN with medicaldiffusion's names, from
safetensors or from what torch.save or Lightning wrote (.ckpt, .pth, .pt; none of
its code is run), and writes a checkpoint for train.init, infer and encode. What
the tensors don't say (downsample, norm, groups, padding, window) it takes from
the words behind the file, from what Lightning kept of the model's options, or
assumes, and prints which.`,
		Example: `  flowrun import model.ckpt
  flowrun import model.ckpt -o models model.downsample='[4, 4, 2]'
  flowrun import weights.safetensors read.window_hu='[-1024, 600]'`,
		Args:              arguments(1, -1, "a file of weights, as in flowrun import model.ckpt"),
		ValidArgsFunction: completeImport,
		RunE: func(c *cobra.Command, args []string) error {
			for _, word := range args[1:] {
				if !strings.Contains(word, "=") {
					return usagef("import", "%s: want key=value words behind the file, such as model.norm=channel", word)
				}
			}
			ctx, stop := cancelled(c.Context())
			defer stop()
			o.Words = args[1:]
			return importWeights(ctx, c.OutOrStdout(), args[0], o)
		},
	}
	c.Flags().StringVarP(&o.Out, "out", "o", "", "a .safetensors file, or a folder; left out, MODEL.flowrun.safetensors in this folder")
	c.Flags().StringVar(&o.Prefix, "prefix", "", "what the model's names begin with, where the file holds several models")
	c.Flags().StringVar(&o.Axes, "axes", "", "the model's spatial axes in their order, such as zxy; left out, "+flows.AxesDefault)
	c.Flags().BoolVar(&o.Force, "force", false, "replace a file that is there; write into the folder of a run")
	completeFlag(c, "out", cobra.ShellCompDirectiveDefault)
	completeFlag(c, "axes", cobra.ShellCompDirectiveNoFileComp, "zyx", "zxy", "yzx", "yxz", "xzy", "xyz")
	return c
}

// completeImport completes MODEL, then those keys that a checkpoint keeps.
func completeImport(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"safetensors", "ckpt", "pth", "pt"}, cobra.ShellCompDirectiveFilterFileExt
	}
	words, directive := completeKey(word)
	var kept []string
	for _, w := range words {
		for _, key := range []string{"model.", "read.window_hu=", "read.spacing=", "tile.patch="} {
			if strings.HasPrefix(w, key) {
				kept = append(kept, w)
			}
		}
	}
	return kept, directive
}
