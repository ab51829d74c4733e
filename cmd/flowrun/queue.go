package main

import (
	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func queueCommand() *cobra.Command {
	var at flows.QueueAt
	c := &cobra.Command{
		Use:   "queue [create | delete] QUEUE [key=value …]",
		Short: "say what waits in a run's queue, who is connected and how fast it goes",
		Long: `Queue looks at a run whose edge lies on NATS (docs/nats.md): how many scans and
patches wait, how many are in hand, what they take on the server's disk, what comes
and goes in a second, who is connected, and how many dead letters there are.

QUEUE is the run's file (its block queue is used), the URL of a NATS server or the
name of a context of the nats tool; the last two want --run. create makes the streams
of a trainer's file, for servers whose trainer may not; delete removes them and what
waits in them.`,
		Example: `  flowrun queue train-nats.yaml
  flowrun queue nats://gpu:4222 --run ctpa
  flowrun queue create train-nats.yaml queue.creds=admin.creds
  flowrun queue delete train-nats.yaml`,
		Args:              arguments(1, -1, "a queue, as in flowrun queue train-nats.yaml"),
		ValidArgsFunction: completeFile,
		RunE: func(c *cobra.Command, args []string) error {
			act := queueStatus
			switch args[0] {
			case "create":
				act, args = queueCreate, args[1:]
			case "delete":
				act, args = queueDelete, args[1:]
			}
			if len(args) == 0 {
				return usagef("queue", "which queue? as in flowrun queue create train-nats.yaml")
			}
			at.Where, at.Words = args[0], args[1:]
			ctx, stop := cancelled(c.Context())
			defer stop()
			return act(ctx, at, ui(c.OutOrStdout(), c.ErrOrStderr(), false))
		},
	}
	c.Flags().StringVar(&at.Name, "run", "", "the run's queue.name, where QUEUE isn't a file")
	return c
}
