// Command gen writes the assembly kernels of package cpu with avo: zz_kernels_amd64.s, and their Go declarations in
// zz_kernels_amd64.go. Run it by go generate in gpu/cpu; a test here says when those files are stale.
//
// Every kernel exists for AVX-512 (names end in Z) and AVX2 (names end in Y). What each computes is defined by its plain Go
// namesake in package cpu.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"

	"github.com/mmcloughlin/avo/build"
	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: gen FOLDER")
	}
	files, err := generate()
	if err != nil {
		log.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// generate gives the text of each generated file.
func generate() (map[string][]byte, error) {
	c := build.NewContext()
	c.ConstraintExpr("amd64")
	var tables bytes.Buffer
	for _, v := range []vectors{avx512, avx2} {
		k := kernels{Context: c, vectors: v, words: map[uint32]op.Mem{}}
		k.matrices(&tables)
		k.elementwise()
	}
	f, err := c.Result()
	if err != nil {
		return nil, err
	}
	if err := pass.Compile.Execute(f); err != nil {
		return nil, err
	}
	cfg := printer.Config{Name: "gpu/cpu/internal/gen", Pkg: "cpu"}
	asm, err := printer.NewGoAsm(cfg).Print(f)
	if err != nil {
		return nil, err
	}
	stubs, err := printer.NewStubs(cfg).Print(f)
	if err != nil {
		return nil, err
	}
	stubs, err = format.Source(fmt.Appendf(stubs, "\n%s", tables.Bytes()))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"zz_kernels_amd64.s": asm, "zz_kernels_amd64.go": stubs}, nil
}
