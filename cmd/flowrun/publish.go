package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func publishCommand() *cobra.Command {
	var (
		at    flows.QueueAt
		o     flows.PublishOptions
		quiet bool
	)
	c := &cobra.Command{
		Use:   "publish SCAN… --queue QUEUE",
		Short: "ask the workers of a queue for the patches of scans",
		Long: `Publish names scans to the workers of a run whose edge lies on NATS (docs/nats.md):
folders, patterns, files or .txt lists, as read.scans. Workers read the files where
they are, below their subscribe.roots; with --bytes the files go through the server.
It waits while enough scans wait already. Started again, it goes on where it was.

QUEUE is the run's file (its block queue is used), the URL of a NATS server or the
name of a context of the nats tool; the last two want --run.`,
		Example: `  flowrun publish data --queue train-nats.yaml --epochs 30
  flowrun publish 'data/**/*.nii.gz' --queue nats://gpu:4222 --run ctpa
  flowrun publish --watch incoming --bytes --queue train-nats.yaml`,
		Args: arguments(0, -1, "scans, as in flowrun publish data --queue train-nats.yaml"),
		RunE: func(c *cobra.Command, args []string) error {
			o.Scans = args
			switch {
			case at.Where == "":
				return usagef("publish", "which queue? as in --queue train-nats.yaml")
			case len(args) == 0 && o.Watch == "":
				return usagef("publish", "which scans? name folders, patterns or files, or --watch FOLDER")
			case len(args) > 0 && o.Watch != "":
				return usagef("publish", "--watch goes without scans: those that are in the folder now are published, too")
			}
			ctx, soft, begun, release := stops(c.Context(), c.ErrOrStderr())
			defer release()
			u := ui(c.OutOrStdout(), c.ErrOrStderr(), quiet)
			u.Begun = begun
			return publish(ctx, soft, at, o, u)
		},
	}
	f := c.Flags()
	queueFlags(c, &at)
	f.StringVar(&o.Watch, "watch", "", "publish a folder's scans as they appear")
	f.IntVar(&o.Epochs, "epochs", 1, "how often each scan is published")
	f.BoolVar(&o.Bytes, "bytes", false, "send the files' bytes")
	f.StringVar(&o.Dir, "dir", "", "where to note what was published (runs/publish-NAME)")
	f.BoolVarP(&quiet, "quiet", "q", false, "say only what is wrong")
	return c
}

// queueFlags are the flags by which verbs find a queue.
func queueFlags(c *cobra.Command, at *flows.QueueAt) {
	c.Flags().StringVar(&at.Where, "queue", "", "the run's .yaml file, a NATS server's URL, or a context of the nats tool")
	c.Flags().StringVar(&at.Name, "run", "", "the run's queue.name, where --queue isn't a file")
}
