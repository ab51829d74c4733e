package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/configs"
)

const rootLong = `flowrun trains a 3D VQ-GAN on full-resolution CT: it cuts scans into
overlapping patches, streams them through the stages that a YAML file lists
into one training stage, and keeps what it learns in checkpoints.

Start here:
  flowrun demo              five minutes on a CPU with made-up scans
  flowrun plan train.yaml   what a run takes: bytes, steps, hours
  flowrun bench train.yaml  how fast it is, and what bounds it
  flowrun train.yaml        the run; Ctrl-C stops it with a checkpoint, and the
                            same command goes on from there
  flowrun reconstruct.yaml  whole scans through the model and back, measured;
                            encode.yaml and decode.yaml keep them as codes
  flowrun help              the stages, and flowrun help STAGE all of its keys

Any key of the file can be set behind it, the second augment's too:
  flowrun train.yaml train.lr=3e-4 train.validate.every=100 run.seed=7
  flowrun train.yaml tile.patch=64,64,32 'augment[1].flip=x,y'

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 data, 4 diverged,
75 interrupted, resumable.`

// rootCommand is flowrun with all its verbs.
func rootCommand() *cobra.Command {
	var quiet bool
	root := &cobra.Command{
		Use:               "flowrun FILE.yaml [key=value …]",
		Short:             "train a 3D VQ-GAN on full-resolution CT scans",
		Long:              rootLong,
		Args:              cobra.ArbitraryArgs, // checked below, where the errors teach
		SilenceErrors:     true,
		SilenceUsage:      true,
		ValidArgsFunction: completeFirst,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return usagef("", "which file? as in flowrun train.yaml")
			}
			if err := misspeltVerb(args); err != nil {
				return err
			}
			if err := fileFirst("", args); err != nil {
				return err
			}
			ctx, soft, begun, release := stops(c.Context(), c.ErrOrStderr())
			defer release()
			u := ui(c.OutOrStdout(), c.ErrOrStderr(), quiet)
			u.Begun = begun
			return runFile(ctx, soft, args[0], args[1:], u)
		},
	}
	root.Version = version()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "print the version")
	root.Flags().BoolVarP(&quiet, "quiet", "q", false, "say only what is wrong")
	root.AddCommand(planCommand(), benchCommand(), devicesCommand(), demoCommand(), phantomCommand(), inspectCommand(), exportCommand(), importCommand(),
		publishCommand(), queueCommand(), deadCommand(), versionCommand())
	root.SetHelpCommand(helpCommand())
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Short = "write a completion script for your shell"
			c.Args, c.RunE = cobra.ArbitraryArgs, func(*cobra.Command, []string) error {
				return usagef("completion", "which shell? as in flowrun completion bash (or zsh, fish, powershell)")
			}
		}
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{err, c.CommandPath() + " --help"}
	})
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}

// verbs are the words that can stand where a file is named.
func verbs() []string {
	var names []string
	for _, c := range rootCommand().Commands() {
		names = append(names, c.Name())
	}
	return append(names, "help", "completion")
}

// misspeltVerb is an error where the first word is neither a file nor looks like one: it may be meant for a verb.
func misspeltVerb(args []string) error {
	word := args[0]
	if _, err := os.Stat(word); err == nil || word == "" || strings.ContainsAny(word, "./\\=") {
		return nil
	}
	if verb, near := configs.Suggest(word, verbs()); near {
		return &usageError{err: fmt.Errorf("%s: no such verb, nor a file; did you mean flowrun %s?", word, verb)}
	}
	file := "train.yaml"
	if len(args) > 1 && !strings.Contains(args[1], "=") {
		file = args[1]
	}
	return usagef("", "%s: no such verb, nor a file; a run is its file alone, as in flowrun %s", word, file)
}

// fileFirst checks that args are a file, then key=value words.
func fileFirst(verb string, args []string) error {
	if strings.Contains(args[0], "=") && !strings.ContainsAny(args[0], "/\\") {
		return usagef(verb, "%s: the file comes first, as in flowrun train.yaml %s", args[0], args[0])
	}
	for _, word := range args[1:] {
		if !strings.Contains(word, "=") {
			return usagef(verb, "%s: want key=value words behind the file, such as train.lr=3e-4", word)
		}
	}
	return nil
}

// arguments checks the count of a verb's arguments.
func arguments(least, most int, wants string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return &usageError{errors.New("want " + wants), c.CommandPath() + " --help"}
		}
		return nil
	}
}
