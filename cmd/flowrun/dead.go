package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/flows"
)

func deadCommand() *cobra.Command {
	var (
		at            flows.QueueAt
		requeue, drop string
	)
	c := &cobra.Command{
		Use:   "dead QUEUE [key=value …]",
		Short: "list what a queue gave up, and have it tried again",
		Long: `Dead lists the dead letters of a run whose edge lies on NATS: scans that couldn't be
read and patches that couldn't be used, with the reason. --requeue asks for their
scans again, after the file was mended; patches that were trained aren't trained
twice. An epoch that has ended doesn't begin again.`,
		Example: `  flowrun dead train-nats.yaml
  flowrun dead train-nats.yaml --requeue 3,5
  flowrun dead train-nats.yaml --requeue all
  flowrun dead nats://gpu:4222 --run ctpa --drop 4`,
		Args:              arguments(1, -1, "a queue, as in flowrun dead train-nats.yaml"),
		ValidArgsFunction: completeFile,
		RunE: func(c *cobra.Command, args []string) error {
			at.Where, at.Words = args[0], args[1:]
			o := flows.DeadOptions{All: requeue == "all"}
			var err error
			if !o.All {
				if o.Requeue, err = numbers("requeue", requeue); err != nil {
					return err
				}
			}
			if o.Drop, err = numbers("drop", drop); err != nil {
				return err
			}
			ctx, stop := cancelled(c.Context())
			defer stop()
			return deadLetters(ctx, at, o, ui(c.OutOrStdout(), c.ErrOrStderr(), false))
		},
	}
	f := c.Flags()
	f.StringVar(&at.Name, "run", "", "the run's queue.name, where QUEUE isn't a file")
	f.StringVar(&requeue, "requeue", "", "numbers of letters whose scans are asked for again, or all")
	f.StringVar(&drop, "drop", "", "numbers of letters to forget")
	return c
}

// numbers reads a list of a flag: 3,5.
func numbers(flag, text string) ([]uint64, error) {
	if text == "" {
		return nil, nil
	}
	var list []uint64
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(word), 10, 64)
		if err != nil || n == 0 {
			return nil, usagef("dead", "--%s: %q isn't the number of a letter (want numbers, as in 3,5)", flag, word)
		}
		list = append(list, n)
	}
	return list, nil
}
