//go:build cuda

package cuda

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/enginetest"
)

// TestMain has the driver loaded from the stand-in, which it builds where its sources changed.
func TestMain(m *testing.M) {
	if os.Getenv(Library) == "" {
		library, err := standIn()
		if err != nil {
			fmt.Println("cuda: skipped, no stand-in for the driver:", err)
			return
		}
		if err := os.Setenv(Library, library); err != nil {
			panic(err)
		}
	}
	flag.Parse()
	few := true // the emulation is slow
	flag.Visit(func(f *flag.Flag) { few = few && f.Name != "rapid.checks" })
	if few {
		if err := flag.Set("rapid.checks", "4"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// standIn builds the stand-in driver, unless it was built before.
func standIn() (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", errors.New("it is for amd64")
	}
	hash := sha256.New()
	for _, pattern := range []string{"kernels/*.cu", "kernels/*.h", "standin/*", "include/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			hash.Write(text)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "flowrun")
	library := filepath.Join(dir, fmt.Sprintf("standin-%.8x.so", hash.Sum(nil)))
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	made := fmt.Sprintf("%s.%d", library, os.Getpid())
	if out, err := exec.Command("g++", "-Istandin", "-std=c++17", "-O3", "-shared", "-fPIC", "-o", made, "standin/driver.cc", "-ldl").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return library, os.Rename(made, library)
}

func open(t testing.TB) Card {
	t.Helper()
	e, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEngine(t *testing.T) {
	enginetest.Run(t, func() gpu.Engine { return open(t) })
}
