//go:build !(linux || darwin || freebsd)

package observe

import "time"

// FreeSpace isn't known here.
func FreeSpace(string) (int64, bool) { return 0, false }

// ProcessorTime isn't known here.
func ProcessorTime() time.Duration { return 0 }
