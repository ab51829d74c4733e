package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The committed PTX is of the committed sources; where the compiler is there, byte for byte.
func TestKernelsAreFresh(t *testing.T) {
	t.Chdir("../..")
	sources, err := filepath.Glob("kernels/*.cu")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	for _, source := range sources {
		ptx, err := os.ReadFile(strings.TrimSuffix(source, ".cu") + ".ptx")
		if err != nil {
			t.Fatal(err)
		}
		head, err := header(source)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(ptx, []byte(head)) {
			t.Errorf("%s: its PTX is stale: run make kernels", source)
			continue
		}
		if _, err := exec.LookPath("clang++-19"); err != nil {
			continue
		}
		again, err := compile(source)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, ptx) {
			t.Errorf("%s: clang++-19 makes other PTX of it: run make kernels", source)
		}
	}
}
