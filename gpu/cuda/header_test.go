//go:build cuda

package cuda

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Where the environment names NVIDIA's own cuda.h (a toolkit's) and libcuda.so.1 (a driver's; no card is needed), ours must agree with them.
const (
	theirHeader  = "FLOWRUN_CUDA_H"
	theirLibrary = "FLOWRUN_DRIVER"
)

// gone are constants that newer headers don't have any more, or have with more bits.
var gone = regexp.MustCompile(`^CU_(TARGET_COMPUTE_2\d|CTX_FLAGS_MASK)$`)

// older are structs that newer headers know under another version, of which the driver keeps ours for the functions that we name.
var older = []string{"CUDA_KERNEL_NODE_PARAMS"}

// TestHeader compares values, layouts and prototypes.
func TestHeader(t *testing.T) {
	theirs := os.Getenv(theirHeader)
	if theirs == "" {
		t.Skip(theirHeader + " names no header of NVIDIA's")
	}
	text, err := os.ReadFile("include/cuda.h")
	if err != nil {
		t.Fatal(err)
	}
	ours := string(text)

	var say strings.Builder
	line := func(what, format string) {
		fmt.Fprintf(&say, "printf(\"%s %%lld\\n\", (long long)%s);\n", what, format)
	}
	constants := regexp.MustCompile(`\b(CUDA_SUCCESS|CUDA_ERROR_\w+|CUDA_ARRAY3D_[A-Z]+_?[A-Z]+\b|CU_[A-Z0-9_]+)\b`).FindAllString(ours, -1)
	slices.Sort(constants)
	for _, c := range slices.Compact(constants) {
		if c != "CUDA_ARRAY3D_DESCRIPTOR" && !gone.MatchString(c) {
			line(c, c)
		}
	}
	field := regexp.MustCompile(`(\w+)\s*[,;]`)
	for _, m := range regexp.MustCompile(`typedef struct \{([^}]*)\} (CUDA_\w+);`).FindAllStringSubmatch(ours, -1) {
		if slices.Contains(older, m[2]) {
			continue
		}
		line("sizeof "+m[2], "sizeof("+m[2]+")")
		for _, f := range field.FindAllStringSubmatch(m[1], -1) {
			line(m[2]+"."+f[1], "offsetof("+m[2]+", "+f[1]+")")
		}
	}
	dir := t.TempDir()
	values := func(name, include string) string {
		program := "#include <stddef.h>\n#include <stdio.h>\n#include <cuda.h>\nint main(void) {\n" + say.String() + "return 0;\n}\n"
		compile(t, filepath.Join(dir, name), program, include)
		out, err := exec.Command(filepath.Join(dir, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	a, b := strings.Split(values("ours", "include"), "\n"), strings.Split(values("theirs", filepath.Dir(theirs)), "\n")
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("%s (NVIDIA's %s)", a[i], b[i])
		}
	}
	// A second prototype of another type is an error.
	prototypes := regexp.MustCompile(`(?m)^CUresult cu\w+\(.*\);$`).FindAllString(ours, -1)
	compile(t, filepath.Join(dir, "prototypes"), "#include <cuda.h>\n"+strings.Join(prototypes, "\n")+"\nint main(void) { return 0; }\n", filepath.Dir(theirs))
	t.Logf("%d values and %d prototypes", len(a)-1, len(prototypes))
}

// compile makes a program of C text.
func compile(t *testing.T, to, text, include string) {
	t.Helper()
	if err := os.WriteFile(to+".c", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-I"+include, "-w", "-o", to, to+".c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestLibrary looks for every function that the shim jumps to.
func TestLibrary(t *testing.T) {
	theirs := os.Getenv(theirLibrary)
	if theirs == "" {
		t.Skip(theirLibrary + " names no library of NVIDIA's")
	}
	f, err := elf.Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, s := range symbols {
		has[s.Name] = s.Section != elf.SHN_UNDEF
	}
	text, err := os.ReadFile("shim.inc")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`X\((\w+)\)`).FindAllStringSubmatch(string(text), -1) {
		if !has[m[1]] {
			t.Errorf("%s isn't there", m[1])
		}
	}
}
