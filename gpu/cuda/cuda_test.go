//go:build cuda

package cuda

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cuda/cudatest"
	"github.com/flowrun/flowrun/gpu/enginetest"
)

// TestMain has the driver loaded from the stand-in, which it builds where its sources changed.
func TestMain(m *testing.M) {
	if os.Getenv(Library) == "" {
		library, err := cudatest.StandIn(".")
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
