package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/flows"
)

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [STAGE | BLOCK | KEY | VERB]",
		Short: "document every key of a stage or block",
		Example: `  flowrun help              stages, blocks and verbs
  flowrun help tile         every key of the stage tile
  flowrun help model        every key of the model block, and the presets
  flowrun help train.lr     one key`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return topics(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			p := newPage(c.OutOrStdout())
			switch {
			case len(args) == 0:
				return overview(p, c.Root())
			case slices.Contains(verbs(), args[0]) && slices.Contains(keyed(), args[0]):
				if err := p.topic(strings.Join(args, ".")); err != nil {
					return err
				}
				p.line("\nflowrun %s --help documents the verb of this name.", args[0])
				return p.err
			case slices.Contains(verbs(), args[0]):
				verb, _, err := c.Root().Find(args)
				if err != nil {
					return err
				}
				return verb.Help()
			}
			return p.topic(strings.Join(args, "."))
		},
	}
}

// keyed are the names of stages and blocks.
func keyed() []string {
	stages, blocks := documents()
	var names []string
	for _, d := range slices.Concat(stages, blocks) {
		names = append(names, d.Name)
	}
	return names
}

// topics are all names that help takes, keys aside.
func topics() []string {
	names := keyed()
	for _, v := range verbs() {
		if !slices.Contains(names, v) {
			names = append(names, v)
		}
	}
	return names
}

// overview lists what there is.
func overview(p *page, root *cobra.Command) error {
	stages, blocks := documents()
	p.line("%s", rootLong)
	p.line("\nVerbs:")
	p.line("  %-11s %s", "FILE.yaml", "run a file: train, reconstruct, encode, decode")
	for _, c := range root.Commands() {
		p.row(c.Name(), c.Short)
	}
	p.line("\nStages, in the order in which data meets them (flowrun help STAGE):")
	for _, d := range stages {
		p.row(d.Name, signature(d)+": "+d.Doc)
	}
	p.line("\nBlocks of a file (flowrun help BLOCK):")
	for _, d := range blocks {
		p.row(d.Name, d.Doc)
	}
	p.row("flow", "The list of stages: each takes what the one above it gives.")
	return p.err
}

// signature says what a stage takes and gives.
func signature(d flows.StageDoc) string {
	if d.In == "" {
		return "gives " + d.Out
	}
	return d.In + " to " + d.Out
}

// A page is text for people, as wide as their terminal.
type page struct {
	w     io.Writer
	width int
	err   error // the first, of writing
}

func newPage(w io.Writer) *page {
	width := 80
	if columns, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		width = columns
	}
	if f, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil {
			width = columns
		}
	}
	return &page{w: w, width: min(max(width, 40), 110)}
}

func (p *page) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// row writes a name and, beside it, wrapped text.
func (p *page) row(name, text string) {
	const column = 14
	lines := wrap(text, p.width-column)
	p.line("  %-11s %s", name, lines[0])
	for _, l := range lines[1:] {
		p.line("%*s%s", column, "", l)
	}
}

// topic documents a stage, a block, or keys of it (train.validate, train.lr).
func (p *page) topic(name string) error {
	stages, blocks := documents()
	head, path, _ := strings.Cut(name, ".")
	for _, d := range slices.Concat(stages, blocks) {
		if d.Name != head {
			continue
		}
		keys := described(d)
		if path != "" {
			keys = slices.DeleteFunc(keys, func(k configs.Key) bool { return k.Name != path && !strings.HasPrefix(k.Name, path+".") })
		}
		if len(keys) > 0 || path == "" {
			p.document(d, keys, path == "")
			return p.err
		}
		break
	}
	return &usageError{err: fmt.Errorf("%s: no such stage, block, key or verb%s", name, nearTopic(name, stages, blocks))}
}

// described are the keys of a stage or block; the presets are choices that only configs knows.
func described(d flows.StageDoc) []configs.Key {
	keys := configs.Describe(d.Options)
	for i, k := range keys {
		if d.Name == "model" && k.Name == "preset" {
			keys[i].Choices = configs.Presets()
		}
	}
	return keys
}

func nearTopic(name string, stages, blocks []flows.StageDoc) string {
	names := topics()
	for _, d := range slices.Concat(stages, blocks) {
		for _, k := range configs.Describe(d.Options) {
			names = append(names, d.Name+"."+k.Name)
		}
	}
	if near, ok := configs.Suggest(name, names); ok {
		return "; did you mean flowrun help " + near + "?"
	}
	return "; flowrun help lists them"
}

// document writes a stage or block, whole or only some of its keys.
func (p *page) document(d flows.StageDoc, keys []configs.Key, whole bool) {
	if whole {
		switch {
		case d.Out != "":
			p.line("%s, a stage: %s", d.Name, signature(d))
		default:
			p.line("%s, a block of the file", d.Name)
		}
		for _, l := range wrap(d.Doc, p.width) {
			p.line("%s", l)
		}
		p.line("\nKeys, in the file or as %s.KEY=VALUE behind it:", d.Name)
	}
	for _, k := range keys {
		p.line("")
		p.key(d.Name, k)
	}
	if whole && d.Name == "model" {
		p.presets()
	}
}

// key writes one key: its name, what it takes, and what it does.
func (p *page) key(owner string, k configs.Key) {
	const indent = 6
	p.line("  %s.%s", owner, k.Name)
	for _, l := range wrap(facts(k), p.width-indent) {
		p.line("%*s%s", indent, "", l)
	}
	for _, l := range wrap(k.Doc, p.width-indent) {
		p.line("%*s%s", indent, "", l)
	}
}

// facts are type or choices, unit, bounds, default.
func facts(k configs.Key) string {
	if k.Block() {
		return "a block of keys"
	}
	text := k.Type
	if len(k.Choices) > 0 {
		text = strings.Join(k.Choices, " | ")
		if strings.HasPrefix(k.Type, "a list") {
			text = "a list of " + text
		}
	}
	if k.Unit != "" && k.Type != "a size" {
		text += ", " + k.Unit
	}
	if k.Type == "a size" {
		text += " such as 512MiB or 16GiB"
	}
	if k.Bounds != "" {
		text += "; " + k.Bounds
	}
	if k.Required {
		text += "; required"
	} else {
		text += "; default " + k.Default
	}
	if k.Example != "" {
		text += "; for example " + k.Example
	}
	return text
}

// presets writes the presets' own words.
func (p *page) presets() {
	p.line("\nPresets, for model.preset; keys given beside it replace its values:")
	for _, name := range configs.Presets() {
		data, err := configs.Preset(name)
		if err != nil {
			continue // Presets has just named it
		}
		p.line("\n  %s", name)
		for _, l := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			p.line("      %s", l)
		}
	}
}

// wrap breaks text into lines of at most width letters, at spaces; at least one line.
func wrap(text string, width int) []string {
	lines := []string{""}
	length := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last, length = word, n
		case length+1+n <= width:
			*last, length = *last+" "+word, length+1+n
		default:
			lines, length = append(lines, word), n
		}
	}
	return lines
}
