package main

import (
	"strings"

	"github.com/spf13/cobra"
)

func demoCommand() *cobra.Command {
	var quiet bool
	c := &cobra.Command{
		Use:   "demo [DIR] [key=value …]",
		Short: "make CT-like scans, train on them for five minutes, show a picture",
		Long: `Demo makes a few phantom scans in DIR (runs/demo if none is named), trains a small
model on them on the CPU for about five minutes on two cores, and ends by naming a
PNG that shows input, reconstruction and error in three planes. The same command
goes on with a demo that was stopped.`,
		Example: `  flowrun demo
  flowrun demo /tmp/demo train.max_steps=50 model.codes=1024`,
		Args: arguments(0, -1, "at most a folder and key=value words"),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 && !strings.Contains(word, ".") {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return completeKey(word)
		},
		RunE: func(c *cobra.Command, args []string) error {
			dir := "runs/demo"
			if len(args) > 0 && !strings.Contains(args[0], "=") {
				dir, args = args[0], args[1:]
			}
			if err := fileFirst("demo", append([]string{""}, args...)); err != nil {
				return err
			}
			ctx, soft, begun, release := stops(c.Context(), c.ErrOrStderr())
			defer release()
			u := ui(c.OutOrStdout(), c.ErrOrStderr(), quiet)
			u.Begun = begun
			return demo(ctx, soft, dir, args, u)
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say only what is wrong")
	return c
}
