package checkpoint

import "github.com/flowrun/flowrun/stages/safetensors"

// disk is what Save asks of the file system; tests make it fail.
type disk struct {
	safetensors.Disk
	free func(dir string) (bytes int64, ok bool)
}

func local() disk { return disk{safetensors.Local(), free} }
