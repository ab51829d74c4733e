package main

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flowrun/flowrun/configs"
)

// completeFile completes FILE.yaml, then key=value words.
func completeFile(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
	}
	return completeKey(word)
}

// completeFirst completes FILE.yaml where a verb may stand as well, then key=value words. The shell would take verbs
// beside a filter of file names for such filters; so the files are named here, and where there are none (a folder is
// being typed) the shell completes paths.
func completeFirst(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return completeFile(c, args, word)
	}
	var files []string
	for _, ext := range []string{".yaml", ".yml"} {
		if found, err := filepath.Glob(word + "*" + ext); err == nil { // a word may be a broken pattern
			files = append(files, found...)
		}
	}
	return files, cobra.ShellCompDirectiveDefault
}

// completeKey completes one key=value word: the key of any stage or block, then its choices.
func completeKey(word string) ([]string, cobra.ShellCompDirective) {
	stages, blocks := documents()
	name, _, valued := strings.Cut(word, "=")
	var words []string
	for _, d := range slices.Concat(stages, blocks) {
		for _, k := range described(d) {
			key := d.Name + "." + k.Name
			switch {
			case k.Block():
			case !valued && strings.HasPrefix(key, word):
				words = append(words, key+"="+"\t"+k.Doc)
			case valued && key == name:
				words = values(key, k)
			}
		}
	}
	if valued {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// values are the words key=value that complete a key with few values.
func values(key string, k configs.Key) []string {
	choices := k.Choices
	if k.Type == "true or false" {
		choices = []string{"true", "false"}
	}
	words := make([]string, len(choices))
	for i, c := range choices {
		words[i] = key + "=" + c
	}
	return words
}

// completeFlag completes a flag's value by words, or by what the shell does.
func completeFlag(c *cobra.Command, name string, directive cobra.ShellCompDirective, words ...string) {
	err := c.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, directive
	})
	if err != nil {
		panic(err) // no such flag
	}
}
