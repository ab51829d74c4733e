package checkpoint

import "github.com/flowrun/flowrun/stages/files"

// disk is what Save asks of the file system; tests make it fail.
type disk struct {
	files.Disk
	free func(dir string) (bytes int64, ok bool)
}

func local() disk { return disk{files.Local(), free} }
