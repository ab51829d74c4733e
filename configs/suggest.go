package configs

import (
	"strconv"
	"strings"
)

// Suggest returns the candidate nearest to word, if any is near enough to be what was meant: the first that word is
// the last part of (lr for train.lr), else the one with the fewest edits.
func Suggest(word string, candidates []string) (string, bool) {
	if word == "" || len(word) > 80 {
		return "", false
	}
	lower := strings.ToLower(word)
	for _, c := range candidates {
		if strings.HasSuffix(c, "."+lower) {
			return c, true
		}
	}
	best, least := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		d := edits(lower, strings.ToLower(c))
		if d < least && d < len(c) {
			best, least = c, d
		}
	}
	if best == "" {
		for _, c := range candidates { // a beginning that was cut off
			if len(lower) >= 3 && strings.HasPrefix(c, lower) {
				return c, true
			}
		}
	}
	return best, best != ""
}

// edits counts the letters to insert, delete, replace or swap with their neighbour that turn a into b (the optimal
// string alignment distance).
func edits(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

// didYouMean ends an error about word with the nearest candidate, or is empty.
func didYouMean(word string, candidates []string) string {
	if c, ok := Suggest(word, candidates); ok {
		return "; did you mean " + strconv.Quote(c) + "?"
	}
	return ""
}

// oneOf lists choices for an error.
func oneOf(words []string) string {
	switch len(words) {
	case 1:
		return words[0]
	case 2:
		return words[0] + " or " + words[1]
	}
	return "one of " + strings.Join(words, ", ")
}
