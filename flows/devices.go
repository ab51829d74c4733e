package flows

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/cuda"
)

// Devices prints what can compute here: the GPUs that the NVIDIA driver lists, or why there are none, and the CPU.
func Devices(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush says what failed
	devices, err := cuda.Devices()
	if err != nil {
		line("cuda\tnone: %v", err)
	}
	for _, d := range devices {
		line("cuda:%d\t%s, %s, compute capability %d.%d, driver for CUDA %d.%d", d.Ordinal, d.Name, size(d.Memory), d.Major, d.Minor, d.Driver[0], d.Driver[1])
		if err := d.Usable(); err != nil {
			line("\tcan't be used: %v", err)
		}
	}
	e := cpu.New(0)
	line("cpu\t%s, %s", e.Name(), size(hostMemory()))
	if err := e.Close(); err != nil {
		return err
	}
	return t.Flush()
}
