// Command compile makes kernels/NAME.ptx of each kernels/NAME.cu, with clang++-19 alone: no CUDA toolkit. Run it in gpu/cuda (go generate).
package main

import (
	"crypto/sha256"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	sources, err := filepath.Glob("kernels/*.cu")
	if err != nil {
		log.Fatal(err)
	}
	for _, source := range sources {
		text, err := compile(source)
		if err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(strings.TrimSuffix(source, ".cu")+".ptx", text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// targetOf is what a source is compiled for: compute capability 8.0, which every later device compiles for itself; NAME90.cu for Hopper
// alone, whose own instructions they don't have.
func targetOf(source string) (arch, ptx string) {
	if strings.HasSuffix(source, "90.cu") {
		return "sm_90a", "+ptx80"
	}
	return "sm_80", "+ptx70"
}

// compile gives the PTX of a source.
func compile(source string) ([]byte, error) {
	head, err := header(source)
	if err != nil {
		return nil, err
	}
	compiler := os.Getenv("CLANG")
	if compiler == "" {
		compiler = "clang++-19"
	}
	arch, ptx := targetOf(source)
	cmd := exec.Command(compiler, "-x", "cuda", "--cuda-device-only", "-nocudainc", "-nocudalib", "-O3", "-S", "-std=c++17",
		"--cuda-gpu-arch="+arch, "--cuda-feature="+ptx, "-o", "-", source)
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w\n%s", source, compiler, err, failed.String())
	}
	return append([]byte(head), out...), nil
}

var included = regexp.MustCompile(`(?m)^#include "(.*)"$`)

// header says what a PTX file was made of: the hash of the source and of what it includes.
func header(source string) (string, error) {
	hash := sha256.New()
	for files, i := []string{source}, 0; i < len(files); i++ {
		text, err := os.ReadFile(files[i])
		if err != nil {
			return "", err
		}
		hash.Write(text)
		for _, m := range included.FindAllSubmatch(text, -1) {
			file := filepath.Join(filepath.Dir(source), string(m[1]))
			if filepath.Base(file) != "emu.h" && !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return fmt.Sprintf("// Code generated from %s by gpu/cuda/internal/compile; DO NOT EDIT.\n// sources: %x\n", filepath.Base(source), hash.Sum(nil)), nil
}
